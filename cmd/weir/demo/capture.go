package demo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

// capture sees every packet that crosses a bridge, and looks for marks in it.
type capture struct {
	socket *os.File
	marks  []string
	done   chan struct{} // closed when read has returned

	mu    sync.Mutex // guards what follows
	sight sight
	tails map[flow][]byte // the last bytes of each TCP flow: a mark may be cut in two
}

// sight is what a capture has seen.
type sight struct {
	between map[pair]flowCount
	hits    map[string]int // packets in which a mark is, or ends
	lost    int            // packets that came faster than they were read
}

// pair is who sent to whom.
type pair struct{ from, to netip.Addr }

// flow is one direction of a TCP connection.
type flow struct {
	pair
	fromPort, toPort uint16
}

// flowCount counts TCP packets and the bytes they carry.
type flowCount struct{ packets, bytes int }

func (f flowCount) plus(g flowCount) flowCount {
	return flowCount{f.packets + g.packets, f.bytes + g.bytes}
}

// captureBuffer holds what arrives while the reader is not scheduled: some
// hundred of the largest packets.
const captureBuffer = 16 << 20

// openCapture starts to look, until close.
func openCapture(bridge *netlab.Host, marks ...string) (*capture, error) {
	var fd int
	err := bridge.Do(func() (err error) { fd, err = packetSocket("br0"); return err })
	if err != nil {
		return nil, err
	}
	c := &capture{
		socket: os.NewFile(uintptr(fd), "capture"), marks: marks, done: make(chan struct{}),
		sight: sight{between: map[pair]flowCount{}, hits: map[string]int{}}, tails: map[flow][]byte{},
	}
	go c.read()
	return c, nil
}

// packetSocket opens a socket on an interface that gives packets from their IP
// header on. Promiscuous mode makes a bridge hand up what it only passes on.
func packetSocket(name string) (fd int, err error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	link, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	// No protocol yet: before bind it would see all interfaces.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	// Forcing it past the machine's limit is for the machine's root only.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
	}
	err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return fd, nil
}

// close ends the capture.
func (c *capture) close() {
	_ = c.socket.Close()
	<-c.done
}

// read takes packets until the socket is closed.
func (c *capture) read() {
	defer close(c.done)
	packet := make([]byte, 1<<17) // with segmentation left to the card, more than any MTU
	for {
		n, err := c.socket.Read(packet)
		if err != nil {
			return
		}
		c.look(packet[:n])
	}
}

// seen is what was seen until now.
func (c *capture) seen() sight {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sight
	s.between, s.hits = maps.Clone(s.between), maps.Clone(s.hits)
	if raw, err := c.socket.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				c.sight.lost += int(st.Drops) // asking sets it to zero
			}
		})
	}
	s.lost = c.sight.lost
	return s
}

// look looks at one packet.
func (c *capture) look(packet []byte) {
	f, payload, ok := tcp(packet)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		c.search(packet, 0) // UDP, ICMP: whatever it is, it must not hold a mark
		return
	}
	c.sight.between[f.pair] = c.sight.between[f.pair].plus(flowCount{1, len(payload)})
	text := append(c.tails[f], payload...)
	c.search(text, len(c.tails[f]))
	keep := 0
	for _, m := range c.marks {
		keep = max(keep, len(m)-1)
	}
	c.tails[f] = bytes.Clone(text[max(0, len(text)-keep):])
}

// search counts the marks that end after the first old bytes, which were
// searched before.
func (c *capture) search(text []byte, old int) {
	for _, m := range c.marks {
		from := max(0, old-len(m)+1)
		if bytes.Contains(text[from:], []byte(m)) {
			c.sight.hits[m]++
		}
	}
}

// tcp takes a packet apart. ok is false for what is not TCP.
func tcp(packet []byte) (f flow, payload []byte, ok bool) {
	if len(packet) < 1 {
		return f, nil, false
	}
	var segment []byte
	switch packet[0] >> 4 {
	case 4: // RFC 791 section 3.1
		header := int(packet[0]&15) * 4
		if len(packet) < 20 || header < 20 || packet[9] != unix.IPPROTO_TCP {
			return f, nil, false
		}
		total := min(int(binary.BigEndian.Uint16(packet[2:])), len(packet))
		if total < header {
			return f, nil, false
		}
		f.from, f.to = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		segment = packet[header:total]
	case 6: // RFC 8200 section 3; the kernel's TCP sends no extension headers
		if len(packet) < 40 || packet[6] != unix.IPPROTO_TCP {
			return f, nil, false
		}
		f.from, f.to = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		segment = packet[40:]
	default:
		return f, nil, false
	}
	if len(segment) < 20 { // RFC 9293 section 3.1
		return f, nil, false
	}
	offset := int(segment[12]>>4) * 4
	if offset < 20 || offset > len(segment) {
		return f, nil, false
	}
	f.fromPort, f.toPort = binary.BigEndian.Uint16(segment), binary.BigEndian.Uint16(segment[2:])
	return f, segment[offset:], true
}
