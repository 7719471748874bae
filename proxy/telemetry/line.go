package telemetry

import (
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	maxPath = 2048
	maxWord = 512 // every other text
)

// appendLine appends the record as one line of JSON. It is written out by hand: a general encoder takes four times as long,
// and this is done for each request.
func (r *Record) appendLine(b []byte) []byte {
	start := len(b)
	if !r.Time.IsZero() {
		b = r.Time.UTC().AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano)
		b = append(b, '"')
	}
	b = appendText(b, `,"direction":"`, string(r.Direction), maxWord)
	b = appendText(b, `,"request_id":"`, r.RequestID, maxWord)
	b = appendText(b, `,"source":"`, r.Source, maxWord)
	b = appendText(b, `,"destination":"`, r.Destination, maxWord)
	b = appendText(b, `,"endpoint":"`, r.Endpoint, maxWord)
	b = appendText(b, `,"method":"`, r.Method, maxWord)
	b = appendText(b, `,"path":"`, r.Path, maxPath)
	b = appendText(b, `,"protocol":"`, r.Protocol, maxWord)
	if r.Status != 0 {
		b = appendNumber(b, `,"status":`, int64(r.Status))
	}
	b = appendText(b, `,"grpc_status":"`, r.GRPC, maxWord)
	b = appendText(b, `,"reason":"`, r.Reason, maxWord)
	b = appendMillis(append(b, `,"duration_ms":`...), r.Duration)
	b = appendNumber(b, `,"bytes_in":`, r.BytesIn)
	b = appendNumber(b, `,"bytes_out":`, r.BytesOut)
	if r.Attempts != 0 {
		b = appendNumber(b, `,"attempts":`, int64(r.Attempts))
	}
	b = appendText(b, `,"route":"`, r.Route, maxWord)
	b = appendText(b, `,"audit":"`, r.Audit, maxWord)
	b = appendText(b, `,"trace_id":"`, r.TraceID, maxWord)
	b[start] = '{' // in place of the first comma
	return append(b, "}\n"...)
}

func appendNumber(b []byte, key string, n int64) []byte {
	return strconv.AppendInt(append(b, key...), n, 10)
}

// appendMillis appends milliseconds to the microsecond, without zeros at the end.
func appendMillis(b []byte, d time.Duration) []byte {
	us := d.Microseconds()
	if us < 0 {
		b, us = append(b, '-'), -us
	}
	b = strconv.AppendInt(b, us/1000, 10)
	if rest := us % 1000; rest != 0 {
		b = append(b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
		for b[len(b)-1] == '0' {
			b = b[:len(b)-1]
		}
	}
	return b
}

// appendText appends a text of at most so many bytes after its key, which opens the quote; an empty one is left out.
func appendText(b []byte, key, text string, most int) []byte {
	if text == "" {
		return b
	}
	text = text[:min(len(text), most)]
	b = append(b, key...)
	if at := special(text); at < len(text) {
		b = appendEscaped(append(b, text[:at]...), text[at:])
	} else {
		b = append(b, text...)
	}
	return append(b, '"')
}

// plain are the bytes that stand for themselves in a JSON string (RFC 8259 section 7).
var plain = func() (p [256]bool) {
	for c := byte(' '); c < utf8.RuneSelf; c++ {
		p[c] = c != '"' && c != '\\'
	}
	return p
}()

// special gives the index of the first byte that is not plain, or the length.
func special(s string) int {
	for i := range len(s) {
		if !plain[s[i]] {
			return i
		}
	}
	return len(s)
}

const hex = "0123456789abcdef"

// appendEscaped appends what may not be plain: whatever a client sends, it stays in its quotes and on its line.
func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 { // not UTF-8
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, s[i:i+size]...)
			}
			i += size
			continue
		case plain[c]:
			b = append(b, c)
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
		i++
	}
	return b
}
