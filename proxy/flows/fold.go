package flows

import "strings"

const (
	maxSegments = 8  // of a folded path; what follows is "…"
	maxSegment  = 40 // bytes of one; a longer one is an id, or text
)

// AppendFolded appends a request target's path with what tells one thing from
// another folded: segments that are numbers, UUIDs, hexadecimal from 8 digits on,
// long, or hold an @ or a % are *. The query is dropped, and so is what follows
// the eighth segment. A target without path ("*", "host:port") stays as it is, as
// far as 40 bytes.
func AppendFolded(dst []byte, target string) []byte {
	if end := strings.IndexAny(target, "?#"); end >= 0 {
		target = target[:end]
	}
	if target == "" || target[0] != '/' {
		return append(dst, target[:min(len(target), maxSegment)]...)
	}
	for n, rest := 0, target; rest != ""; n++ {
		segment := rest[1:]
		if end := strings.IndexByte(segment, '/'); end >= 0 {
			segment = segment[:end]
		}
		rest = rest[1+len(segment):]
		switch {
		case n == maxSegments:
			return append(dst, "/…"...)
		case isID(segment):
			dst = append(dst, "/*"...)
		default:
			dst = append(append(dst, '/'), segment...)
		}
	}
	return dst
}

// isID tells a segment that names one thing of many.
func isID(s string) bool {
	if len(s) > maxSegment {
		return true
	}
	digits, hex, dashes, other := 0, 0, 0, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '@', c == '%', c <= ' ', c >= 0x7f:
			return true
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			hex++
		case c == '-':
			dashes++
		default:
			other++
		}
	}
	switch {
	case digits == 0 || other > 0: // without a digit it is a word, such as "added"
		return false
	case dashes > 0:
		return len(s) == 36 && dashes == 4
	}
	return hex == 0 || len(s) >= 8
}
