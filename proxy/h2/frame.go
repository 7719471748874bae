package h2

import "encoding/binary"

type frameType uint8

// Frame types, RFC 9113 section 6.
const (
	frameData         frameType = 0x0
	frameHeaders      frameType = 0x1
	framePriority     frameType = 0x2
	frameReset        frameType = 0x3
	frameSettings     frameType = 0x4
	framePush         frameType = 0x5
	framePing         frameType = 0x6
	frameGoAway       frameType = 0x7
	frameWindowUpdate frameType = 0x8
	frameContinuation frameType = 0x9
)

// Flags, RFC 9113 section 6.
const (
	flagEndStream  = 0x1 // DATA, HEADERS
	flagAck        = 0x1 // SETTINGS, PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings, RFC 9113 section 6.5.2.
const (
	settingTableSize    = 0x1
	settingPush         = 0x2
	settingMaxStreams   = 0x3
	settingWindow       = 0x4
	settingMaxFrame     = 0x5
	settingMaxHeadBytes = 0x6
	settingConnect      = 0x8 // SETTINGS_ENABLE_CONNECT_PROTOCOL, RFC 8441 section 3
)

const (
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	headerLen     = 9
	maxFrame      = 16384 // what everybody takes, and all that is taken here
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
)

type frameHeader struct {
	length int
	kind   frameType
	flags  uint8
	id     uint32
}

func (h *frameHeader) has(flag uint8) bool { return h.flags&flag != 0 }

func parseHeader(b []byte) frameHeader {
	_ = b[8]
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   frameType(b[3]), flags: b[4],
		id: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendHeader(out []byte, length int, kind frameType, flags uint8, id uint32) []byte {
	return append(out, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendReset(out []byte, id uint32, code ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(out, 4, frameReset, 0, id), uint32(code))
}

func appendWindowUpdate(out []byte, id uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(out, 4, frameWindowUpdate, 0, id), uint32(n))
}

func appendPing(out []byte, flags uint8, payload []byte) []byte {
	return append(appendHeader(out, 8, framePing, flags, 0), payload...)
}

func appendGoAway(out []byte, last uint32, code ErrCode, text string) []byte {
	out = appendHeader(out, 8+len(text), frameGoAway, 0, 0)
	out = binary.BigEndian.AppendUint32(out, last)
	out = binary.BigEndian.AppendUint32(out, uint32(code))
	return append(out, text...)
}

func appendSetting(out []byte, id uint16, value int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(out, id), uint32(value))
}

// patchLength writes the length of a frame whose header begins at from, and cuts a
// head that is longer than a frame into CONTINUATIONs.
func patchLength(out []byte, from int) []byte {
	n := len(out) - from - headerLen
	if n <= maxFrame {
		out[from], out[from+1], out[from+2] = byte(n>>16), byte(n>>8), byte(n)
		return out
	}
	h := parseHeader(out[from:])
	rest := append([]byte(nil), out[from+headerLen+maxFrame:]...) // rare: a head of more than 16 KiB
	out = out[:from+headerLen+maxFrame]
	out[from], out[from+1], out[from+2] = byte(maxFrame>>16), byte(maxFrame>>8&0xff), 0
	out[from+4] &^= flagEndHeaders
	for len(rest) > 0 {
		piece, flags := rest[:min(len(rest), maxFrame)], uint8(0)
		if rest = rest[len(piece):]; len(rest) == 0 {
			flags = flagEndHeaders
		}
		out = append(appendHeader(out, len(piece), frameContinuation, flags, h.id), piece...)
	}
	return out
}
