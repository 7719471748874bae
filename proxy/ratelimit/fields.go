package ratelimit

import (
	"strconv"
	"time"
)

// AppendPolicy appends the value of a RateLimit-Policy field (draft-ietf-httpapi-ratelimit-headers): "default";q=100;w=60.
// It does not allocate if dst has room.
func AppendPolicy(dst []byte, name string, p Policy) []byte {
	dst = appendString(dst, name)
	dst = strconv.AppendInt(append(dst, ";q="...), int64(p.Limit), 10)
	return strconv.AppendInt(append(dst, ";w="...), seconds(p.Window), 10)
}

// AppendRateLimit appends the value of a RateLimit field (same draft): "default";r=50;t=30. It does not allocate if dst has room.
func AppendRateLimit(dst []byte, name string, d Decision) []byte {
	dst = appendString(dst, name)
	dst = strconv.AppendInt(append(dst, ";r="...), int64(d.Remaining), 10)
	return strconv.AppendInt(append(dst, ";t="...), seconds(d.Reset), 10)
}

// AppendRetryAfter appends the value of a Retry-After field (RFC 9110 section 10.2.3): whole seconds, rounded up, at least 1.
func AppendRetryAfter(dst []byte, d Decision) []byte {
	return strconv.AppendInt(dst, max(seconds(d.RetryAfter), 1), 10)
}

func seconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// appendString appends a structured-field string (RFC 9651 section 4.1.6). What such a string cannot hold becomes an underscore.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20 || c > 0x7e:
			dst = append(dst, '_')
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
