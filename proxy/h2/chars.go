package h2

// Byte classes, one bit each, so that a single table serves all.
const (
	tokenByte  uint8 = 1 << iota // RFC 9110 section 5.6.2
	nameByte                     // the same without upper case: RFC 9113 section 8.2.1
	valueByte                    // field values: RFC 9110 section 5.5, obs-text included
	targetByte                   // request targets: visible ASCII without "#"
	hostByte                     // RFC 3986 host and port, without userinfo
)

var class = func() (t [256]uint8) {
	for c := range t {
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= valueByte
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= targetByte
		}
		lower := '0' <= c && c <= '9' || 'a' <= c && c <= 'z'
		if lower {
			t[c] |= nameByte
		}
		if lower || 'A' <= c && c <= 'Z' {
			t[c] |= tokenByte | hostByte
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= tokenByte | nameByte
	}
	for _, c := range "-._~%!$&'()*+,;=:[]" {
		t[c] |= hostByte
	}
	return t
}()

// all reports whether every byte of s is of the class.
func all(s string, want uint8) bool {
	for i := 0; i < len(s); i++ {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

func isToken(s string) bool { return len(s) > 0 && all(s, tokenByte) }

// validValue reports whether s may be a field value, RFC 9113 section 8.2.1.
func validValue(s string) bool {
	if len(s) == 0 {
		return true
	}
	if first, last := s[0], s[len(s)-1]; first == ' ' || first == '\t' || last == ' ' || last == '\t' {
		return false
	}
	return all(s, valueByte)
}

// equalFold compares in ASCII only: field names are tokens.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
