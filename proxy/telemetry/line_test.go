package telemetry

import (
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// slowLine is the line as a general encoder writes it.
func slowLine(t *testing.T, r *Record) string {
	t.Helper()
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey:    "time",
		EncodeTime: func(at time.Time, e zapcore.PrimitiveArrayEncoder) { zapcore.RFC3339NanoTimeEncoder(at.UTC(), e) },
		LineEnding: "\n",
	})
	var f []zapcore.Field
	text := func(key, value string, most int) {
		if value != "" {
			f = append(f, zap.String(key, value[:min(len(value), most)]))
		}
	}
	text("direction", string(r.Direction), 512)
	text("request_id", r.RequestID, 512)
	text("source", r.Source, 512)
	text("destination", r.Destination, 512)
	text("endpoint", r.Endpoint, 512)
	text("method", r.Method, 512)
	text("path", r.Path, 2048)
	text("protocol", r.Protocol, 512)
	if r.Status != 0 {
		f = append(f, zap.Int("status", r.Status))
	}
	text("grpc_status", r.GRPC, 512)
	text("reason", r.Reason, 512)
	f = append(f, zap.Float64("duration_ms", float64(r.Duration.Microseconds())/1000), zap.Int64("bytes_in", r.BytesIn), zap.Int64("bytes_out", r.BytesOut))
	if r.Attempts != 0 {
		f = append(f, zap.Int("attempts", r.Attempts))
	}
	text("route", r.Route, 512)
	text("trace_id", r.TraceID, 512)
	line, err := enc.EncodeEntry(zapcore.Entry{Time: r.Time}, f)
	if err != nil {
		t.Fatal(err)
	}
	return line.String()
}

func sameLine(t *testing.T, r Record) {
	t.Helper()
	if got, want := string(r.appendLine(nil)), slowLine(t, &r); got != want {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func TestLinesAreAsAGeneralEncoderWritesThem(t *testing.T) {
	for _, c := range lines {
		sameLine(t, c.record)
	}
	for c := range 256 { // each byte, alone and within
		sameLine(t, Record{Path: string([]byte{byte(c)}), RequestID: "a" + string([]byte{byte(c)}) + "z"})
	}
	for _, s := range []string{"é", "\xc3", "\xed\xa0\x80", "\u2028", "😀", "\ufffd", strings.Repeat("é", 1025), strings.Repeat("x", 511) + "é"} {
		sameLine(t, Record{Path: s, RequestID: s, Method: s})
	}
	for _, d := range []time.Duration{0, 1, 999, 1000, 1500, 10_000, 100_000, 120_000, 123_000, 1_000_000, 1_020_000, 10 * time.Hour, -1, -1500, -time.Second} {
		sameLine(t, Record{Duration: d})
	}
	sameLine(t, Record{Status: math.MaxInt, Attempts: -1, BytesIn: math.MinInt64, BytesOut: math.MaxInt64})
	sameLine(t, Record{Time: time.Unix(1_800_000_000, 0)})
	sameLine(t, Record{Time: time.Unix(1_800_000_000, 120_000_000)})
}

func FuzzLine(f *testing.F) {
	f.Add("/", "id", int64(1_500_000), int64(1_800_000_000_000_000_001))
	f.Add("\x00\xff\"\\é\u2028", strings.Repeat("\xc3", 600), int64(-1), int64(0))
	f.Fuzz(func(t *testing.T, path, id string, duration, at int64) {
		const year = int64(365 * 24 * time.Hour)
		sameLine(t, Record{Path: path, RequestID: id, Duration: time.Duration(duration % year), Time: time.Unix(0, at)})
	})
}
