package secure

import (
	"bytes"
	"testing"
)

// FuzzCutter: whatever comes, in whatever pieces, all of it is handed on in
// order, and no piece reaches over the end of a record.
func FuzzCutter(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 2, 1, 2, 23, 3, 3, 0, 0, 23, 3, 3, 0, 1, 9}, []byte{1, 4, 7})
	f.Add([]byte{22, 3, 1}, []byte{})
	f.Add([]byte{0, 0, 0, 255, 255, 1, 2, 3}, []byte{200, 1})
	f.Fuzz(func(t *testing.T, stream, pieces []byte) {
		ends := map[int]bool{}
		for at := 0; at+headerBytes <= len(stream); {
			at += headerBytes + int(stream[at+3])<<8 + int(stream[at+4])
			ends[at] = true
		}
		var c cutter
		var got []byte
		for i := 0; len(got) < len(stream); i++ {
			in, out := len(stream), len(stream)
			if len(pieces) > 0 { // what has come, and what there is room for
				in, out = 1+int(pieces[i%len(pieces)]&15), 1+int(pieces[i%len(pieces)]>>4)
			}
			dst := make([]byte, out)
			from := len(got)
			n := c.take(dst, stream[from:min(from+in, len(stream))])
			if n == 0 {
				t.Fatalf("nothing was taken at %d", from)
			}
			for at := from + 1; at < from+n; at++ {
				if ends[at] {
					t.Fatalf("%d bytes from %d reach over the end of a record at %d", n, from, at)
				}
			}
			got = append(got, dst[:n]...)
		}
		if !bytes.Equal(got, stream) {
			t.Fatalf("got %x, not %x", got, stream)
		}
	})
}
