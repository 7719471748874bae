package policy

import (
	"math/bits"
	"strings"
)

// A PathReader gives the path of a request the one form in which rules look at it
// and servers get it, and finds what else servers may take it for. The zero value
// is ready; it serves one request at a time. A path that has the form already costs
// no allocation.
//
// The form is that of RFC 3986 section 6.2.2: an escape of a letter, a digit or one
// of -._~ gives way to the character, hex digits are upper case, dot segments are
// resolved. Servers that differ there break the standard. Where they are free to
// differ, and do, the form leaves the path alone: see Reading.
type PathReader struct {
	target string // as it is to be matched and sent on
	odd    habit  // those that would read another path
	plain  bool   // the form was given by the client

	scratch []byte
}

// A habit is what some servers do before they look for what a path names.
type habit uint8

const (
	decodes     habit = 1 << iota // reads every escape: %2F is a slash (nginx, Go's FileServer)
	decodesMore                   // and then once again: %252F is one too
	cutsParams                    // leaves out what stands between ; and the next slash (Tomcat, Jetty)
	merges                        // takes several slashes for one (nginx, Apache)
	turns                         // takes a backslash for a slash (the WHATWG's URL in Node, IIS)
)

// Read takes the target of a request, "/a?b" or "*". It is false where no server
// should read it: a NUL, which ends the path for some; a % without two hex
// digits; or a longer encoding of a character than UTF-8 allows (RFC 3629
// section 3), which was made to be overlooked.
func (r *PathReader) Read(target string) bool {
	r.target, r.odd, r.plain = target, 0, true
	if target == "" || target[0] != '/' {
		return true
	}
	end, what := scan(target)
	if what&(dotted|escaped) != 0 {
		normal, ok := normalPath(r.scratch[:0], target[:end])
		if !ok {
			return false
		}
		r.scratch = normal
		if string(normal) != target[:end] {
			r.plain = false
			r.target = string(append(normal, target[end:]...))
			end, what = scan(r.target)
		}
	}
	if what != 0 {
		r.odd = habitsFor(r.target[:end], what)
	}
	return true
}

// Target is what rules are to look at and what is to be sent on.
func (r *PathReader) Target() string { return r.target }

// Normal tells whether the target came in that form.
func (r *PathReader) Normal() bool { return r.plain }

// Odd tells whether there are other readings than Target.
func (r *PathReader) Odd() bool { return r.odd != 0 }

// Reading gives the n-th other target that a server may take Target for, without
// the query; ok is false beyond the last, of which there are at most 32. A
// decision by the path holds only if it is the same for all of them.
func (r *PathReader) Reading(n int) (target string, ok bool) {
	set := pick(n+1, r.odd)
	if set == 0 || n+1 >= 1<<bits.OnesCount8(uint8(r.odd)) {
		return "", false
	}
	end, _ := scan(r.target)
	b := []byte(r.target[:end])
	if set&cutsParams != 0 {
		b = cutParams(b)
	}
	for _, h := range [...]habit{decodes, decodesMore} {
		if set&h != 0 {
			b = unescape(b)
		}
	}
	if set&turns != 0 {
		turn(b)
	}
	if set&merges != 0 {
		b = merge(b)
	}
	b = resolveDots(b)
	if set&(decodes|decodesMore) != 0 {
		b = escape(b)
	}
	return string(b), true
}

// pick gives the n-th set of the habits in all.
func pick(n int, all habit) (set habit) {
	for ; n != 0 && all != 0; n >>= 1 {
		lowest := all & -all
		if n&1 != 0 {
			set |= lowest
		}
		all &^= lowest
	}
	return set
}

// What scan finds in a path.
const (
	dotted  uint8 = 1 << iota // a dot segment
	escaped                   // a %
	doubled                   // two slashes
	semicolon
	backslash
)

var unusual = [256]bool{'/': true, '.': true, '%': true, ';': true, '\\': true, '?': true}

// scan finds the end of the path and what in it is not plain. A dot segment is
// told only by what it may be: /.x is none.
func scan(target string) (end int, found uint8) {
	for i := 1; i < len(target); i++ {
		c := target[i]
		if !unusual[c] {
			continue
		}
		switch c {
		case '?':
			return i, found
		case '/':
			if target[i-1] == '/' {
				found |= doubled
			}
		case '.':
			if target[i-1] == '/' && isDot(target[i:]) {
				found |= dotted
			}
		case '%':
			found |= escaped
		case ';':
			found |= semicolon
		case '\\':
			found |= backslash
		}
	}
	return len(target), found
}

// isDot tells whether a text begins with a whole segment "." or "..".
func isDot(s string) bool {
	rest := strings.TrimPrefix(s[1:], ".")
	return rest == "" || rest[0] == '/' || rest[0] == '?'
}

// habitsFor lists the habits that could make another path of one that is normal.
func habitsFor(path string, found uint8) (odd habit) {
	if found&semicolon != 0 {
		odd |= cutsParams
	}
	if found&backslash != 0 {
		odd |= turns
	}
	for i := 0; found&escaped != 0 && i+2 < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		switch c := hexByte(path[i+1], path[i+2]); {
		case c == '%' && i+4 < len(path) && unhex(path[i+3]) >= 0 && unhex(path[i+4]) >= 0:
			odd |= decodes | decodesMore | turns
		case c == '\\':
			odd |= decodes | turns
		case staysPlain(c):
			odd |= decodes
		}
	}
	if odd != 0 || found&doubled != 0 {
		odd |= merges
	}
	return odd
}

// staysPlain tells whether a byte of a decoded path is written as it is in a reading.
func staysPlain(c byte) bool { return c > ' ' && c < 0x7f && c != '%' && c != '?' && c != '#' }

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// normalPath appends the form of a path to out, which is empty.
func normalPath(out []byte, path string) (normal []byte, ok bool) {
	var before byte // the byte before, if it was escaped
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			out, before = append(out, path[i]), 0
			continue
		}
		if i+2 >= len(path) || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0 {
			return nil, false
		}
		c := hexByte(path[i+1], path[i+2])
		if c == 0 || isOverlong(before, c) {
			return nil, false
		}
		if isUnreserved(c) {
			out = append(out, c)
		} else {
			out = appendEscaped(out, c)
		}
		before = c
		i += 2
	}
	return resolveDots(out), true
}

// isOverlong tells whether two bytes begin a longer UTF-8 encoding than there need be.
func isOverlong(first, second byte) bool {
	switch first {
	case 0xc0, 0xc1:
		return 0x80 <= second && second <= 0xbf
	case 0xe0:
		return 0x80 <= second && second <= 0x9f
	case 0xf0:
		return 0x80 <= second && second <= 0x8f
	}
	return false
}

// resolveDots removes dot segments in place, RFC 3986 section 5.2.4. What leads
// above the root leads to the root.
func resolveDots(b []byte) []byte {
	n := 0 // b[:n] is done
	for i := 0; i < len(b); {
		end := i + 1 // of the segment that begins with the slash at i
		for end < len(b) && b[end] != '/' {
			end++
		}
		switch seg := b[i:end]; string(seg) {
		case "/.", "/..":
			if len(seg) == 3 {
				for n > 0 && b[n-1] != '/' {
					n--
				}
				n = max(n-1, 0) // the slash, too
			}
			if end == len(b) { // it named a directory
				b[n] = '/'
				n++
			}
		default:
			n += copy(b[n:], seg)
		}
		i = end
	}
	return b[:n]
}

// cutParams leaves out what stands between a semicolon and the next slash.
func cutParams(b []byte) []byte {
	n, cut := 0, false
	for _, c := range b {
		cut = c != '/' && (cut || c == ';')
		if !cut {
			b[n] = c
			n++
		}
	}
	return b[:n]
}

// merge makes one slash of several that stand together.
func merge(b []byte) []byte {
	n := 0
	for _, c := range b {
		if c != '/' || n == 0 || b[n-1] != '/' {
			b[n] = c
			n++
		}
	}
	return b[:n]
}

func turn(b []byte) {
	for i, c := range b {
		if c == '\\' {
			b[i] = '/'
		}
	}
}

// unescape decodes what is an escape, in place.
func unescape(b []byte) []byte {
	n := 0
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '%' && i+2 < len(b) && unhex(b[i+1]) >= 0 && unhex(b[i+2]) >= 0 {
			c = hexByte(b[i+1], b[i+2])
			i += 2
		}
		b[n] = c
		n++
	}
	return b[:n]
}

// escape writes a decoded path as rules write theirs.
func escape(b []byte) []byte {
	out := make([]byte, 0, len(b)+16)
	for _, c := range b {
		if staysPlain(c) {
			out = append(out, c)
		} else {
			out = appendEscaped(out, c)
		}
	}
	return out
}

func appendEscaped(out []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(out, '%', digits[c>>4], digits[c&15])
}

func hexByte(high, low byte) byte { return byte(unhex(high)<<4 | unhex(low)) }

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
