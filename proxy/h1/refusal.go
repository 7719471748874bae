package h1

import "net/http"

// refusal is a fault of a message's form. Status is the answer if a client made it.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// Is makes errors.Is(err, ErrMalformed) and ErrTooLarge work.
func (r *refusal) Is(target error) bool {
	if r.status == http.StatusRequestURITooLong || r.status == http.StatusRequestHeaderFieldsTooLarge {
		return target == ErrTooLarge
	}
	return target == ErrMalformed
}

func bad(text string) error { return &refusal{http.StatusBadRequest, text} }

// What the strict parser refuses: RFC 9112 sections 2.2 to 7.1 and 11.2.
var (
	errBareLF          = bad("line feed without carriage return")
	errRequestLine     = bad("request line is not METHOD SP target SP version")
	errMethod          = bad("method is not a token")
	errTarget          = bad("request target has a byte that is not allowed, or a form that is not")
	errVersionForm     = bad("version is not of the form HTTP/1.1")
	errFold            = bad("folded or indented header line")
	errNoColon         = bad("header line without a colon")
	errFieldName       = bad("header name has a byte that is not allowed")
	errEmptyName       = bad("header name is empty")
	errFieldValue      = bad("header value has a control byte")
	errLength          = bad("Content-Length is not a plain number")
	errRepeatedLength  = bad("Content-Length is repeated")
	errEncoding        = bad("Transfer-Encoding is not exactly chunked")
	errBothFramings    = bad("Transfer-Encoding with Content-Length or in HTTP/1.0")
	errConnection      = bad("Connection is not a list of (few) tokens")
	errRepeatedUpgrade = bad("Upgrade is repeated")
	errNoHost          = bad("Host is missing")
	errRepeatedHost    = bad("Host is repeated")
	errHost            = bad("Host has a byte that is not allowed")
	errStatusLine      = bad("status line is not HTTP/1.x SP code SP reason")
	errChunkSize       = bad("chunk size is not a plain hexadecimal number")
	errChunkExtension  = bad("chunk extensions are too long, or have a byte that is not allowed")
	errChunkEnd        = bad("chunk does not end in CRLF")
	errTrailerTooLarge = bad("trailer section is too large")

	errVersion       error = &refusal{http.StatusHTTPVersionNotSupported, "version is not HTTP/1.1 or HTTP/1.0"}
	errConnect       error = &refusal{http.StatusNotImplemented, "CONNECT is not served"}
	errLineTooLong   error = &refusal{http.StatusRequestURITooLong, "request line is too long"}
	errHeadTooLarge  error = &refusal{http.StatusRequestHeaderFieldsTooLarge, "head is too large"}
	errTooManyFields error = &refusal{http.StatusRequestHeaderFieldsTooLarge, "too many header fields"}
)
