package main

import (
	"os"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logSwitch is the proxy's own log, whose level and format can change while it is
// used: the mesh sets them where the flags do not.
type logSwitch struct {
	level     zap.AtomicLevel
	out       zapcore.WriteSyncer
	encoders  map[string]zapcore.Encoder // by format; never changed
	encoder   atomic.Pointer[zapcore.Encoder]
	keepLevel bool // a flag has said it
	keepForm  bool
}

func newLogSwitch(out zapcore.WriteSyncer, level zapcore.Level, format string) *logSwitch {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	console := cfg
	console.EncodeLevel = zapcore.CapitalLevelEncoder
	s := &logSwitch{
		level: zap.NewAtomicLevelAt(level), out: zapcore.Lock(out),
		encoders: map[string]zapcore.Encoder{"json": zapcore.NewJSONEncoder(cfg), "console": zapcore.NewConsoleEncoder(console)},
	}
	s.setFormat(format)
	return s
}

func (s *logSwitch) setFormat(format string) {
	if e, ok := s.encoders[format]; ok {
		s.encoder.Store(&e)
	}
}

// set takes what the mesh wants; words that are empty or unknown change nothing.
func (s *logSwitch) set(level, format string) {
	if l, err := zapcore.ParseLevel(level); err == nil && level != "" && !s.keepLevel {
		s.level.SetLevel(l)
	}
	if !s.keepForm {
		s.setFormat(format)
	}
}

func (s *logSwitch) logger() *zap.Logger {
	return zap.New(&switched{logSwitch: s}, zap.ErrorOutput(zapcore.Lock(os.Stderr)))
}

// switched is the switch as a core. It keeps the fields of a logger as they are:
// zap's own cores encode them once, in the format of the time.
type switched struct {
	*logSwitch
	fields []zapcore.Field
}

func (c *switched) Enabled(l zapcore.Level) bool { return c.level.Enabled(l) }

func (c *switched) With(fields []zapcore.Field) zapcore.Core {
	return &switched{c.logSwitch, append(slices.Clip(c.fields), fields...)}
}

func (c *switched) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *switched) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if len(c.fields) > 0 {
		fields = append(slices.Clip(c.fields), fields...)
	}
	line, err := (*c.encoder.Load()).EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	_, err = c.out.Write(line.Bytes())
	return err
}

func (c *switched) Sync() error { return c.out.Sync() }
