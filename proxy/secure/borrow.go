package secure

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"runtime"
	"strings"
	"unsafe"
)

// A tls.Conn keeps the buffer that it reads records into for as long as it
// lives, at the size of the largest: 18 KiB once a full record came, for a
// connection that may then be idle for hours, and besides what the handshake's
// messages took. This file lends it one for as long as there is something to
// read and then takes everything back. An idle end keeps 5 KiB instead of 8, or
// of 24 after a full record.
//
// The price is that it reaches into crypto/tls. It does so only in the releases
// of Go whose crypto/tls was read for it, only if the fields are there with the
// types it expects, only between calls (nothing waits inside one, see transport),
// and only if they hold nothing. Elsewhere everything works as well, with more
// memory. See decisions/0007.
var fields, fieldsKnown = findFields(reflect.TypeFor[tls.Conn](), runtime.Version())

// read is the release of Go whose crypto/tls was read: nothing but input refers
// to the memory of rawInput after a call.
const read = "go1.26"

type offsets struct{ rawInput, input, hand uintptr }

func findFields(conn reflect.Type, release string) (o offsets, ok bool) {
	if release != read && !strings.HasPrefix(release, read+".") {
		return offsets{}, false
	}
	for _, want := range []struct {
		name string
		is   reflect.Type
		at   *uintptr
	}{
		{"rawInput", reflect.TypeFor[bytes.Buffer](), &o.rawInput}, // ciphertext, decrypted in place
		{"input", reflect.TypeFor[bytes.Reader](), &o.input},       // plaintext, in the memory of rawInput
		{"hand", reflect.TypeFor[bytes.Buffer](), &o.hand},         // handshake messages, copied
	} {
		f, found := conn.FieldByName(want.name)
		if !found || f.Type != want.is {
			return offsets{}, false
		}
		*want.at = f.Offset
	}
	return o, true
}

func field[T any](c *tls.Conn, at uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(c), at)) }

// borrow lends crypto/tls a buffer to read records into.
func (c *Conn) borrow() {
	if !fieldsKnown || c.lent != nil {
		return
	}
	if raw := field[bytes.Buffer](c.tls, fields.rawInput); raw.Cap() == 0 {
		c.lent = lend(classFor(maxRecord))
		*raw = *bytes.NewBuffer(c.lent.data)
	}
}

// holdsMore reports whether crypto/tls holds plaintext. Who cannot see that has
// to suppose it after a read that filled its buffer.
func (c *Conn) holdsMore(filled bool) bool {
	if !fieldsKnown {
		return filled
	}
	return filled && field[bytes.Reader](c.tls, fields.input).Len() > 0
}

// giveBack takes back what crypto/tls has no use for while nothing comes. It
// keeps part of a record, or of a message.
func (c *Conn) giveBack() {
	if !fieldsKnown {
		return
	}
	raw, input := field[bytes.Buffer](c.tls, fields.rawInput), field[bytes.Reader](c.tls, fields.input)
	if raw.Len() > 0 || input.Len() > 0 {
		return
	}
	*raw = bytes.Buffer{}
	input.Reset(nil)
	if hand := field[bytes.Buffer](c.tls, fields.hand); hand.Len() == 0 && hand.Cap() > 0 {
		*hand = bytes.Buffer{}
	}
	if c.lent != nil {
		c.lent.free()
		c.lent = nil
	}
}
