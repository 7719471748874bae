package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is one end of a connection of HTTP/2 (RFC 9113), without I/O: the frames and
// the compression of heads, of which generator and backend need the same.
type wire struct {
	end party

	expect  string // what is left of the preface that has to come first
	partial []byte // a frame that is not all here
	out     []byte // what is to be written
	owed    int    // bytes of bodies that came and were not granted anew

	dec     *hpack.Decoder
	enc     *hpack.Encoder
	encoded bytes.Buffer
	table   uint32 // the most that the peer lets enc's table have

	window  int64  // what may be sent on the connection
	initial int64  // the same on a new stream
	streams uint32 // how many the peer allows
}

// party is what generator and backend do with what comes.
type party interface {
	field(hpack.HeaderField) // of the head or trailer section that follows
	head(id uint32, end bool) error
	data(id uint32, b []byte, end bool) error
	reset(id uint32, code http2.ErrCode) error
	goAway(http2.ErrCode) error
}

const (
	frameHead     = 9
	wholeFrame    = 16384 // the largest that anybody may send unasked
	defaultWindow = 65535
	lastStream    = 1<<31 - 1
)

// start makes w ready for a new connection.
func (w *wire) start(end party) {
	*w = wire{end: end, table: 4096, window: defaultWindow, initial: defaultWindow, streams: lastStream}
	w.enc = hpack.NewEncoder(&w.encoded)
	w.dec = hpack.NewDecoder(4096, end.field)
}

// greet tells the peer that all settings are as they are by default.
func (w *wire) greet() { w.out = appendFrame(w.out, 0, http2.FrameSettings, 0, 0) }

func appendFrame(out []byte, length int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(out, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags)), id)
}

// repeated is a head that one connection sends again and again. What the encoder
// makes of it the second time, when all that it keeps in its table is there, it
// makes of it ever after.
type repeated struct {
	fields []hpack.HeaderField
	times  int // it was encoded with this table
	size   uint32
	bytes  []byte
}

func (w *wire) appendHead(r *repeated, id uint32, end bool) error {
	if r.size != w.table {
		r.times, r.size = 0, w.table
	}
	if r.times < 2 {
		r.times++
		w.encoded.Reset()
		for _, f := range r.fields {
			if err := w.enc.WriteField(f); err != nil {
				return fmt.Errorf("encode a head: %w", err)
			}
		}
		r.bytes = append(r.bytes[:0], w.encoded.Bytes()...)
	}
	flags := http2.FlagHeadersEndHeaders
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	w.out = append(appendFrame(w.out, len(r.bytes), http2.FrameHeaders, flags, id), r.bytes...)
	return nil
}

func (w *wire) appendData(b []byte, id uint32, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	w.out = append(appendFrame(w.out, len(b), http2.FrameData, flags, id), b...)
	w.window -= int64(len(b))
}

// take handles all frames that are whole and keeps the rest.
func (w *wire) take(data []byte) error {
	if len(w.partial) > 0 {
		w.partial = append(w.partial, data...)
		data = w.partial
	}
	if n := min(len(w.expect), len(data)); n > 0 {
		if string(data[:n]) != w.expect[:n] {
			return errors.New("not the preface of HTTP/2")
		}
		w.expect, data = w.expect[n:], data[n:]
	}
	for len(data) >= frameHead {
		length := int(data[0])<<16 | int(data[1])<<8 | int(data[2])
		if length > wholeFrame {
			return fmt.Errorf("a frame of %d bytes", length)
		}
		if len(data) < frameHead+length {
			break
		}
		kind, flags := http2.FrameType(data[3]), http2.Flags(data[4])
		id := binary.BigEndian.Uint32(data[5:]) & lastStream
		if err := w.frame(kind, flags, id, data[frameHead:frameHead+length]); err != nil {
			return err
		}
		data = data[frameHead+length:]
	}
	w.partial = append(w.partial[:0], data...)
	return nil
}

func (w *wire) frame(kind http2.FrameType, flags http2.Flags, id uint32, b []byte) error {
	switch kind {
	case http2.FrameData:
		return w.body(flags, id, b)
	case http2.FrameHeaders:
		b, ok := unpadded(flags.Has(http2.FlagHeadersPadded), flags.Has(http2.FlagHeadersPriority), b)
		if !ok {
			return errShort
		}
		return w.headed(flags, id, b)
	case http2.FrameSettings:
		return w.settle(flags, b)
	case http2.FramePing:
		if len(b) != 8 {
			return errShort
		}
		if !flags.Has(http2.FlagPingAck) {
			w.out = append(appendFrame(w.out, len(b), http2.FramePing, http2.FlagPingAck, 0), b...)
		}
	case http2.FrameWindowUpdate:
		if len(b) != 4 {
			return errShort
		}
		if id == 0 { // on a stream nobody needs more than it begins with
			w.window += int64(binary.BigEndian.Uint32(b) & lastStream)
		}
	case http2.FrameRSTStream:
		if len(b) != 4 {
			return errShort
		}
		return w.end.reset(id, http2.ErrCode(binary.BigEndian.Uint32(b)))
	case http2.FrameGoAway:
		if len(b) < 8 {
			return errShort
		}
		return w.end.goAway(http2.ErrCode(binary.BigEndian.Uint32(b[4:])))
	case http2.FramePushPromise:
		return errors.New("PUSH_PROMISE, which nobody asked for")
	}
	return nil
}

var errShort = errors.New("a frame that is too short")

// unpadded is the content of a frame without what may stand around it.
func unpadded(padded, priority bool, b []byte) ([]byte, bool) {
	pad := 0
	if padded {
		if len(b) == 0 {
			return nil, false
		}
		pad, b = int(b[0]), b[1:]
	}
	if priority {
		if len(b) < 5 {
			return nil, false
		}
		b = b[5:]
	}
	if pad > len(b) {
		return nil, false
	}
	return b[:len(b)-pad], true
}

// body hands DATA on, and gives the peer new credit now and then.
func (w *wire) body(flags http2.Flags, id uint32, b []byte) error {
	if w.owed += len(b); w.owed >= defaultWindow/2 {
		w.out = binary.BigEndian.AppendUint32(appendFrame(w.out, 4, http2.FrameWindowUpdate, 0, 0), uint32(w.owed))
		w.owed = 0
	}
	b, ok := unpadded(flags.Has(http2.FlagDataPadded), false, b)
	if !ok {
		return errShort
	}
	return w.end.data(id, b, flags.Has(http2.FlagDataEndStream))
}

// headed decodes a head. All heads here fit one frame: CONTINUATION is not known.
func (w *wire) headed(flags http2.Flags, id uint32, b []byte) error {
	if !flags.Has(http2.FlagHeadersEndHeaders) {
		return errors.New("a head of more than one frame")
	}
	if _, err := w.dec.Write(b); err != nil {
		return err
	}
	if err := w.dec.Close(); err != nil {
		return err
	}
	return w.end.head(id, flags.Has(http2.FlagHeadersEndStream))
}

// settle does as the peer's SETTINGS say, and acknowledges them.
func (w *wire) settle(flags http2.Flags, b []byte) error {
	if flags.Has(http2.FlagSettingsAck) {
		return nil
	}
	if len(b)%6 != 0 {
		return errShort
	}
	for ; len(b) > 0; b = b[6:] {
		value := binary.BigEndian.Uint32(b[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(b)) {
		case http2.SettingHeaderTableSize:
			if size := min(value, 4096); size != w.table {
				w.table = size
				w.enc.SetMaxDynamicTableSize(size)
			}
		case http2.SettingInitialWindowSize:
			w.initial = int64(value)
		case http2.SettingMaxConcurrentStreams:
			w.streams = value
		}
	}
	w.out = appendFrame(w.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}
