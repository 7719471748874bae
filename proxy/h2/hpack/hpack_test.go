package hpack

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	peer "golang.org/x/net/http2/hpack"
)

var roomy = Limits{Size: 1 << 20, Fields: 1 << 16}

func fieldsOf(h *Head) (out []string) {
	for _, f := range h.Fields {
		out = append(out, fmt.Sprintf("%s=%s %v", f.Name, f.Value, f.Sensitive))
	}
	return out
}

func peerFields(fs []peer.HeaderField) (out []string) {
	for _, f := range fs {
		out = append(out, fmt.Sprintf("%s=%s %v", f.Name, f.Value, f.Sensitive))
	}
	return out
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTheHuffmanCodeIsThatOfTheRFC(t *testing.T) {
	for s := range 256 {
		text := strings.Repeat(string([]byte{byte(s)}), 9) + "x"
		got, ok := appendHuffman(nil, peer.AppendHuffmanString(nil, text))
		if !ok || string(got) != text {
			t.Errorf("byte %d: %q %v", s, got, ok)
		}
	}
}

func TestHuffmanOfAllLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			if b[i] = "abcdeio019-/.%"[r.IntN(14)]; r.IntN(10) == 0 {
				b[i] = byte(r.Uint32())
			}
		}
		if got, ok := appendHuffman(nil, peer.AppendHuffmanString(nil, string(b))); !ok || string(got) != string(b) {
			t.Fatalf("%q became %q, %v", b, got, ok)
		}
	}
}

// FuzzHuffman: both decoders give the same, or refuse.
func FuzzHuffman(f *testing.F) {
	f.Add([]byte("\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		want, err := peer.HuffmanDecodeToString(b)
		got, ok := appendHuffman(nil, b)
		if ok != (err == nil) || ok && string(got) != want {
			t.Fatalf("%x: %q %v, the other says %q %v", b, got, ok, want, err)
		}
	})
}

func TestHuffmanPaddingIsChecked(t *testing.T) {
	for name, b := range map[string]string{
		"a whole byte of padding": "1fff", // "a" is 00011
		"padding of zeros":        "18",
		"the end of string":       "3fffffff",
		"a code that is cut":      "fe",
	} {
		raw, _ := hex.DecodeString(b)
		if got, ok := appendHuffman(nil, raw); ok {
			t.Errorf("%s: taken for %q", name, got)
		}
	}
}

// The examples of RFC 7541 appendix C.4 and C.6, with tables that evict.
func TestTheExamplesOfTheRFC(t *testing.T) {
	var d Decoder
	for i, c := range []struct{ block, want string }{
		{"828684418cf1e3c2e5f23a6ba0ab90f4ff", ":method=GET false\n:scheme=http false\n:path=/ false\n:authority=www.example.com false"},
		{"828684be5886a8eb10649cbf", ":method=GET false\n:scheme=http false\n:path=/ false\n:authority=www.example.com false\ncache-control=no-cache false"},
		{"828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", ":method=GET false\n:scheme=https false\n:path=/index.html false\n:authority=www.example.com false\ncustom-key=custom-value false"},
	} {
		var h Head
		block, _ := hex.DecodeString(c.block)
		if err := d.Decode(&h, block, roomy); err != nil {
			t.Fatal(i, err)
		}
		same(t, fieldsOf(&h), strings.Split(c.want, "\n"))
	}
}

func randomField(r *rand.Rand) peer.HeaderField {
	names := []string{":method", ":path", ":status", "content-type", "cookie", "x-request-id", "x-a", "user-agent", "accept-encoding", "authorization"}
	values := []string{"GET", "/", "200", "", "application/grpc", "gzip, deflate", strings.Repeat("v", 40), strings.Repeat("long", 300), "\xff\x00\x80", strings.Repeat("z", 5000)}
	f := peer.HeaderField{Name: names[r.IntN(len(names))], Value: values[r.IntN(len(values))], Sensitive: r.IntN(8) == 0}
	if r.IntN(4) == 0 {
		f.Value = fmt.Sprint(r.Uint64())
	}
	return f
}

// What the other implementation encodes is decoded alike, whatever its table holds and
// however its size changes.
func TestDecodesWhatOthersEncode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var wire bytes.Buffer
	enc := peer.NewEncoder(&wire)
	var d Decoder
	var h Head
	for i := range 3000 {
		wire.Reset()
		if i%17 == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(DefaultTableSize + 1)))
		}
		var fs []peer.HeaderField
		for range r.IntN(12) {
			f := randomField(r)
			fs = append(fs, f)
			enc.WriteField(f)
		}
		h.Reset()
		if err := d.Decode(&h, wire.Bytes(), roomy); err != nil {
			t.Fatal(i, err)
		}
		same(t, fieldsOf(&h), peerFields(fs))
	}
}

func TestOthersDecodeWhatIsEncoded(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	dec := peer.NewDecoder(DefaultTableSize, nil)
	var e Encoder
	for i := range 3000 {
		if i%17 == 0 {
			e.SetMaxTableSize(uint32(r.IntN(2 * DefaultTableSize)))
			if r.IntN(3) == 0 {
				e.SetMaxTableSize(uint32(r.IntN(100)))
			}
			if r.IntN(3) == 0 {
				e.SetMaxTableSize(DefaultTableSize)
			}
		}
		out := e.Begin(nil)
		var fs []peer.HeaderField
		for range r.IntN(12) {
			f := randomField(r)
			fs = append(fs, f)
			out = e.Field(out, &Field{Name: f.Name, Value: f.Value, Sensitive: f.Sensitive})
		}
		got, err := dec.DecodeFull(out)
		if err != nil {
			t.Fatal(i, err)
		}
		same(t, peerFields(got), peerFields(fs))
	}
}

// A field that is sent again and again takes one byte from the third time on.
func TestWhatIsRepeatedIsIndexed(t *testing.T) {
	var e Encoder
	for i, want := range []int{21, 21, 1, 1} {
		f := Field{Name: "x-tenant", Value: "shop-orders"}
		if out := e.Field(e.Begin(nil), &f); len(out) > want+1 {
			t.Errorf("time %d: %d bytes", i, len(out))
		}
	}
}

func TestSensitiveFieldsEnterNoTable(t *testing.T) {
	var e Encoder
	for range 4 {
		f := Field{Name: "authorization", Value: "Bearer secret", Sensitive: true}
		out := e.Field(e.Begin(nil), &f)
		if out[0]&0xf0 != 0x10 || !bytes.HasSuffix(out, []byte("secret")) {
			t.Errorf("sent as %x", out)
		}
	}
	if e.table.count != 0 {
		t.Error("it is in the table")
	}
}

func TestMalformedBlocksAreRefused(t *testing.T) {
	for name, block := range map[string]string{
		"index 0":                       "80",
		"an index that is not there":    "be",
		"a name that is not there":      "7f0001",
		"a string that is cut":          "000561",
		"an integer without end":        "ffffffffffffffffffff",
		"an integer that is too large":  "ffffffffff7f",
		"a table larger than agreed on": "3fe21f",
		"a size update after a field":   "8220",
		"a literal without value":       "000161",
		"nothing after the prefix":      "40",
	} {
		b, err := hex.DecodeString(block)
		if err != nil {
			t.Fatal(err)
		}
		var d Decoder
		var h Head
		if err := d.Decode(&h, b, roomy); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, err, fieldsOf(&h))
		}
	}
}

// A small block can name a large entry many times. What is kept of it is bounded, and
// the table stays in step.
func TestABombIsNotUnpacked(t *testing.T) {
	var wire bytes.Buffer
	enc := peer.NewEncoder(&wire)
	enc.WriteField(peer.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 4000)})
	for range 60000 {
		wire.WriteByte(0xbe)
	}
	enc.WriteField(peer.HeaderField{Name: "x-after", Value: "1"})
	var d Decoder
	var h Head
	if err := d.Decode(&h, wire.Bytes(), Limits{Size: 64 << 10, Fields: 128}); err != nil {
		t.Fatal(err)
	}
	if !h.Over || h.Size < 200<<20 || cap(h.text) > 200<<10 || len(h.Fields) > 128 {
		t.Errorf("over %v, size %d, memory %d, %d fields", h.Over, h.Size, cap(h.text), len(h.Fields))
	}
	wire.Reset()
	enc.WriteField(peer.HeaderField{Name: "x-after", Value: "1"})
	h.Reset()
	if err := d.Decode(&h, wire.Bytes(), roomy); err != nil {
		t.Fatal(err)
	}
	same(t, fieldsOf(&h), []string{"x-after=1 false"})
}

// Strings stay as they are until Reset, though the table they came from moves on.
func TestStringsOutliveTheTable(t *testing.T) {
	var wire bytes.Buffer
	enc := peer.NewEncoder(&wire)
	var d Decoder
	var first Head
	enc.WriteField(peer.HeaderField{Name: "x-first", Value: "the first value"})
	enc.WriteField(peer.HeaderField{Name: "x-first", Value: "the first value"})
	if err := d.Decode(&first, wire.Bytes(), roomy); err != nil {
		t.Fatal(err)
	}
	var h Head
	for i := range 500 {
		wire.Reset()
		enc.WriteField(peer.HeaderField{Name: fmt.Sprint("x-", i), Value: strings.Repeat("n", i)})
		h.Reset()
		if err := d.Decode(&h, wire.Bytes(), roomy); err != nil {
			t.Fatal(err)
		}
	}
	same(t, fieldsOf(&first), []string{"x-first=the first value false", "x-first=the first value false"})
}

// callHead is the head of a call of gRPC as a mesh sees it: most of it is always the
// same, two fields never are.
func callHead(i int) []Field {
	return []Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/shop.Orders/Get"}, {Name: ":authority", Value: "orders.shop:80"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-go/1.80.0"}, {Name: "te", Value: "trailers"},
		{Name: "grpc-timeout", Value: fmt.Sprint(999000+i%1000, "u")}, {Name: "x-request-id", Value: fmt.Sprintf("5f0c6a6e-%012d", i)},
	}
}

func TestAHeadAllocatesNothing(t *testing.T) {
	var e Encoder
	var d Decoder
	var h Head
	heads := make([][]Field, 64)
	for i := range heads {
		heads[i] = callHead(i)
	}
	var out []byte
	i := 0
	once := func() {
		out = e.Begin(out[:0])
		for _, f := range heads[i%len(heads)] {
			out = e.Field(out, &f)
		}
		i++
		h.Reset()
		if err := d.Decode(&h, out, roomy); err != nil || len(h.Fields) != 9 {
			t.Fatal(err, len(h.Fields))
		}
	}
	for range 3 * len(heads) {
		once()
	}
	if n := testing.AllocsPerRun(500, once); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHuffman(b *testing.B) {
	coded := peer.AppendHuffmanString(nil, "/shop.Orders/Get?customer=17&page=3 grpc-go/1.80.0 5f0c6a6e-0001")
	var out []byte
	for b.Loop() {
		out, _ = appendHuffman(out[:0], coded)
	}
}

func BenchmarkHead(b *testing.B) {
	heads := make([][]Field, 64)
	peers := make([][]peer.HeaderField, 64)
	for i := range heads {
		heads[i] = callHead(i)
		for _, f := range heads[i] {
			peers[i] = append(peers[i], peer.HeaderField{Name: f.Name, Value: f.Value})
		}
	}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		var e Encoder
		var d Decoder
		var h Head
		var out []byte
		for i := 0; b.Loop(); i++ {
			out = e.Begin(out[:0])
			for _, f := range heads[i%len(heads)] {
				out = e.Field(out, &f)
			}
			h.Reset()
			if err := d.Decode(&h, out, roomy); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("x-net", func(b *testing.B) {
		b.ReportAllocs()
		var wire bytes.Buffer
		enc := peer.NewEncoder(&wire)
		n := 0
		dec := peer.NewDecoder(DefaultTableSize, func(peer.HeaderField) { n++ })
		for i := 0; b.Loop(); i++ {
			wire.Reset()
			for _, f := range peers[i%len(peers)] {
				enc.WriteField(f)
			}
			if _, err := dec.Write(wire.Bytes()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// FuzzDecode holds the decoder against the other implementation: blocks that follow one
// another on a connection are refused by both or give the same fields.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"828684418cf1e3c2e5f23a6ba0ab90f4ff", "400a637573746f6d2d6b65790d637573746f6d2d686561646572", "1008706173737764067365637265743fe11f", "be", "20", "3fe11f82"} {
		b, _ := hex.DecodeString(seed)
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if len(one)+len(two) > 1<<14 {
			return
		}
		dec := peer.NewDecoder(DefaultTableSize, nil)
		var d Decoder
		for _, block := range [][]byte{one, two} {
			want, wantErr := dec.DecodeFull(block)
			var h Head
			err := d.Decode(&h, block, Limits{Size: 1 << 30, Fields: 1 << 20})
			if err == errLateUpdate { // the other takes it where it does no harm
				return
			}
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("%x: %v, the other says %v", block, err, wantErr)
			}
			if err != nil {
				return
			}
			same(t, fieldsOf(&h), peerFields(want))
		}
	})
}

// FuzzRoundTrip: what is encoded is decoded to the same by both, in step.
func FuzzRoundTrip(f *testing.F) {
	f.Add("x-name", "value", ":path", "/a", false, uint16(4096))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, sensitive bool, size uint16) {
		var e Encoder
		var d Decoder
		dec := peer.NewDecoder(DefaultTableSize, nil)
		for round := range 4 {
			if round == 2 {
				e.SetMaxTableSize(uint32(size))
			}
			out := e.Begin(nil)
			want := []string{fmt.Sprintf("%s=%s %v", n1, v1, sensitive), fmt.Sprintf("%s=%s false", n2, v2)}
			out = e.Field(out, &Field{Name: n1, Value: v1, Sensitive: sensitive})
			out = e.Field(out, &Field{Name: n2, Value: v2})
			var h Head
			if err := d.Decode(&h, out, Limits{Size: 1 << 30, Fields: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			same(t, fieldsOf(&h), want)
			got, err := dec.DecodeFull(out)
			if err != nil {
				t.Fatal(err)
			}
			same(t, peerFields(got), want)
		}
	})
}
