package hpack

// staticFields is the static table, RFC 7541 appendix A. Its first entry is number 1.
var staticFields = [...]Field{
	1: {Name: ":authority"}, {Name: ":method", Value: "GET"}, {Name: ":method", Value: "POST"},
	{Name: ":path", Value: "/"}, {Name: ":path", Value: "/index.html"},
	{Name: ":scheme", Value: "http"}, {Name: ":scheme", Value: "https"},
	{Name: ":status", Value: "200"}, {Name: ":status", Value: "204"}, {Name: ":status", Value: "206"},
	{Name: ":status", Value: "304"}, {Name: ":status", Value: "400"}, {Name: ":status", Value: "404"}, {Name: ":status", Value: "500"},
	{Name: "accept-charset"}, {Name: "accept-encoding", Value: "gzip, deflate"}, {Name: "accept-language"},
	{Name: "accept-ranges"}, {Name: "accept"}, {Name: "access-control-allow-origin"}, {Name: "age"}, {Name: "allow"},
	{Name: "authorization"}, {Name: "cache-control"}, {Name: "content-disposition"}, {Name: "content-encoding"},
	{Name: "content-language"}, {Name: "content-length"}, {Name: "content-location"}, {Name: "content-range"},
	{Name: "content-type"}, {Name: "cookie"}, {Name: "date"}, {Name: "etag"}, {Name: "expect"}, {Name: "expires"},
	{Name: "from"}, {Name: "host"}, {Name: "if-match"}, {Name: "if-modified-since"}, {Name: "if-none-match"},
	{Name: "if-range"}, {Name: "if-unmodified-since"}, {Name: "last-modified"}, {Name: "link"}, {Name: "location"},
	{Name: "max-forwards"}, {Name: "proxy-authenticate"}, {Name: "proxy-authorization"}, {Name: "range"}, {Name: "referer"},
	{Name: "refresh"}, {Name: "retry-after"}, {Name: "server"}, {Name: "set-cookie"}, {Name: "strict-transport-security"},
	{Name: "transfer-encoding"}, {Name: "user-agent"}, {Name: "vary"}, {Name: "via"}, {Name: "www-authenticate"},
}

const staticLen = len(staticFields) - 1

// staticSlots finds entries by a hash: of the pair, or of the name alone. Both are
// a quarter full at most.
var staticPairs, staticNames [256]uint8

func init() {
	for i := 1; i <= staticLen; i++ {
		f := &staticFields[i]
		f.computeHashes()
		f.static, f.staticName = uint8(i), uint8(i)
		place(&staticPairs, f.pair(), uint8(i))
		if i > 1 && staticFields[i-1].Name == f.Name {
			f.staticName = staticFields[i-1].staticName
			continue
		}
		place(&staticNames, f.name, uint8(i))
	}
}

func place(slots *[256]uint8, hash uint32, i uint8) {
	at := uint8(hash >> 8)
	for slots[at] != 0 {
		at++
	}
	slots[at] = i
}

// findStatic looks for the field, and else for its name, in the static table. Its
// hashes must be there.
func (f *Field) findStatic() {
	for at := uint8(f.pair() >> 8); ; at++ {
		i := staticPairs[at]
		if i == 0 {
			break
		}
		if s := &staticFields[i]; s.Name == f.Name && s.Value == f.Value {
			f.static, f.staticName = i, s.staticName
			return
		}
	}
	for at := uint8(f.name >> 8); f.staticName == 0; at++ {
		i := staticNames[at]
		if i == 0 {
			return
		}
		if staticFields[i].Name == f.Name {
			f.staticName = i
		}
	}
}
