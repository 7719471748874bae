package shortcut

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Names of the maps, by which the programs refer to them.
const (
	mapNamespaces = "weir_netns"   // cookie → settings and figures: where the programs act
	mapAnnounced  = "weir_syn"     // cookie, port → whoever dials from that port dials the proxy
	mapWaiting    = "weir_waiting" // cookie, sequence numbers → who dialled is in the map of sockets
	mapSockets    = "weir_sockets" // cookie, sequence numbers, side → the socket
	mapEnds       = "weir_ends"    // socket → key of the other end, mode, whose
	mapFigures    = "weir_figures" // counts of messages, by processor
)

// Bounds. What finds no room keeps the plain path.
const (
	mostNamespaces = 4096
	// Between a SYN and the end of its handshake. The oldest give way.
	mostHandshakes = 16384
	// Ends of connections, two for each: 64 Ki take 1.5 MiB when idle.
	mostSockets = 1 << 17
)

// An entry of mapNamespaces: what Install writes, then what the programs count.
const (
	nsMark       = 0 // of the proxy's connections to its app
	nsPort       = 4 // of the proxy, for its app's connections
	nsCandidates = 8
	nsPaired     = 16
	nsFull       = 24
	nsSize       = 32
)

// An entry of mapEnds: the other end's key in mapSockets, then these.
const (
	keyClient = 8 // sequence numbers with which the two sides begin
	keyServer = 12
	keySide   = 16 // 0 dialled, 1 was dialled
	keySize   = 24
	endMode   = keySize     // 0 before the first message
	endProxy  = keySize + 4 // 1 for the proxy's end
	endSize   = 32

	modePlain  = 1 // by TCP, for good
	modeHanded = 2 // the first message was handed over
)

// Places in mapFigures.
const (
	figHanded = iota
	figPlain
	figLast
	figCount
)

// mapSpecs are the maps, by name.
func mapSpecs() map[string]*ebpf.MapSpec {
	number := &btf.Int{Name: "number", Size: 4}
	end := &btf.Struct{Name: "end", Size: endSize, Members: []btf.Member{
		{Name: "words", Type: &btf.Array{Index: number, Type: number, Nelems: endSize / 4}},
	}}
	out := map[string]*ebpf.MapSpec{}
	for _, s := range []ebpf.MapSpec{
		{Name: mapNamespaces, Type: ebpf.Hash, KeySize: 8, ValueSize: nsSize, MaxEntries: mostNamespaces, Flags: unix.BPF_F_NO_PREALLOC},
		{Name: mapAnnounced, Type: ebpf.LRUHash, KeySize: 16, ValueSize: 4, MaxEntries: mostHandshakes},
		{Name: mapWaiting, Type: ebpf.LRUHash, KeySize: 16, ValueSize: 4, MaxEntries: mostHandshakes},
		{Name: mapSockets, Type: ebpf.SockHash, KeySize: keySize, ValueSize: 4, MaxEntries: mostSockets},
		{Name: mapFigures, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: figCount},
		// Storage of sockets wants its types described.
		{Name: mapEnds, Type: ebpf.SkStorage, KeySize: 4, ValueSize: endSize, Flags: unix.BPF_F_NO_PREALLOC, Key: &btf.Int{Name: "fd", Size: 4, Encoding: btf.Signed}, Value: end},
	} {
		out[s.Name] = &s
	}
	return out
}

// mayLoad asks the kernel first for what it refuses most often.
func mayLoad() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: mapSockets, Type: ebpf.SockHash, KeySize: keySize, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make a map of sockets: %w", err)
	}
	return m.Close()
}

// put writes the settings of a namespace, keeping its figures.
func (s *set) put(self []byte, cfg Config) (changed bool, err error) {
	now, err := s.entry(self)
	if err != nil {
		return false, err
	}
	if now != nil && settingsDiffer(now, cfg) == nil {
		return false, nil
	}
	if now == nil {
		now = make([]byte, nsSize)
	}
	binary.NativeEndian.PutUint32(now[nsMark:], cfg.InboundMark)
	binary.NativeEndian.PutUint32(now[nsPort:], uint32(cfg.OutboundPort))
	if err := s.namespaces.Put(self, now); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return false, fmt.Errorf("%d network namespaces have the short cut already: namespaces that are gone stay counted until `weir-init --cleanup` in the last one, or `rm -r %s`", mostNamespaces, s.dir)
		}
		return false, fmt.Errorf("add the network namespace: %w", err)
	}
	return true, nil
}

// entry is what is known of a namespace, nil for nothing.
func (s *set) entry(self []byte) ([]byte, error) {
	v, err := s.namespaces.LookupBytes(self)
	if err != nil {
		return nil, fmt.Errorf("look for the network namespace: %w", err)
	}
	return v, nil
}

func settingsDiffer(entry []byte, cfg Config) error {
	if port := binary.NativeEndian.Uint32(entry[nsPort:]); port != uint32(cfg.OutboundPort) {
		return fmt.Errorf("it is installed for outbound port %d, not %d", port, cfg.OutboundPort)
	}
	if mark := binary.NativeEndian.Uint32(entry[nsMark:]); mark != cfg.InboundMark {
		return fmt.Errorf("it is installed for inbound mark %#x, not %#x", mark, cfg.InboundMark)
	}
	return nil
}

// read fills in what was counted.
func (f *Figures) read(entry []byte, counts *ebpf.Map) error {
	f.Candidates = binary.NativeEndian.Uint64(entry[nsCandidates:])
	f.Paired = binary.NativeEndian.Uint64(entry[nsPaired:])
	f.Full = binary.NativeEndian.Uint64(entry[nsFull:])
	for i, to := range []*uint64{figHanded: &f.Handed, figPlain: &f.Plain, figLast: &f.Last} {
		var perCPU []uint64
		if err := counts.Lookup(uint32(i), &perCPU); err != nil {
			return fmt.Errorf("read the figures: %w", err)
		}
		for _, n := range perCPU {
			*to += n
		}
	}
	return nil
}
