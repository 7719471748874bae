package shortcut

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// struct bpf_sock_ops and struct bpf_sock, include/uapi/linux/bpf.h. A test
// compares these with the running kernel.
const (
	opsOp         = 0
	opsRemotePort = 64 // in network byte order, as 32 bits
	opsLocalPort  = 68 // in the machine's
	opsFull       = 72 // 0: a listener's request, whose handshake is not over
	opsRcvNxt     = 100
	opsSndNxt     = 104
	opsSocket     = 184
	sockMark      = 16
)

// Events of struct bpf_sock_ops.
const (
	eventWindow  = 2 // BPF_SOCK_OPS_RWND_INIT: a SYN has come and will be answered, or one will be sent
	eventActive  = 4 // BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB: ours was answered
	eventPassive = 5 // BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: our answer was
)

const (
	noExist    = 1 // BPF_NOEXIST
	make1      = 1 // BPF_SK_STORAGE_GET_F_CREATE
	solSocket  = 1
	soPriority = 12
)

// The stack of establish.
const (
	ownKey   = -24 // cookie, client's and server's sequence number, side
	ownC     = ownKey + keyClient
	ownS     = ownKey + keyServer
	ownSide  = ownKey + keySide
	portKey  = -40 // cookie, port
	scratch  = -48
	end      = -80 // entry of mapEnds
	endSide  = end + keySide
	portKeyP = portKey + 8
)

// establish is the program that is told of each connection in the cgroup. Events
// that are none of its business end after three comparisons, connections of other
// namespaces after one look-up.
//
// R6 is the context, R7 the event, R8 the namespace's entry, R9 whether the
// socket is the proxy's.
func establish() *ebpf.ProgramSpec {
	ins := join(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, opsOp, asm.Word),
		asm.JEq.Imm(asm.R7, eventWindow, "ours"),
		asm.JEq.Imm(asm.R7, eventActive, "ours"),
		asm.JNE.Imm(asm.R7, eventPassive, "done"),

		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("ours"),
		asm.FnGetNetnsCookie.Call(),
		asm.StoreMem(asm.RFP, ownKey, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, portKey, asm.R0, asm.DWord),
		onMap(asm.FnMapLookupElem, mapNamespaces, ownKey),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.JEq.Imm(asm.R7, eventWindow, "announced"),
		asm.LoadMem(asm.R1, asm.R6, opsSndNxt, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, opsRcvNxt, asm.Word),
		asm.JEq.Imm(asm.R7, eventPassive, "dialled"),
		dialling(),
		dialled(),
		insert(),
		announced(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("done"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: "weir_establish", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, Instructions: ins, License: licence}
}

// dialling looks whether who dialled is the proxy, calling its app, or has dialled
// the proxy.
func dialling() asm.Instructions {
	return join(
		asm.StoreMem(asm.RFP, ownC, asm.R1, asm.Word),
		asm.StoreMem(asm.RFP, ownS, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R3, 0),
		asm.StoreMem(asm.RFP, ownSide, asm.R3, asm.DWord),
		asm.LoadMem(asm.R2, asm.R8, nsMark, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "app dials"),
		asm.LoadMem(asm.R1, asm.R6, opsSocket, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "done"),
		asm.LoadMem(asm.R1, asm.R1, sockMark, asm.Word),
		asm.Mov.Imm(asm.R9, 1),
		asm.JEq.Reg(asm.R1, asm.R2, "insert"),

		asm.LoadMem(asm.R1, asm.R6, opsLocalPort, asm.Word).WithSymbol("app dials"),
		asm.StoreMem(asm.RFP, portKeyP, asm.R1, asm.DWord),
		onMap(asm.FnMapLookupElem, mapAnnounced, portKey),
		asm.JEq.Imm(asm.R0, 0, "done"), // as the proxy's connections to others
		onMap(asm.FnMapDeleteElem, mapAnnounced, portKey),
		asm.Mov.Imm(asm.R9, 0),
		asm.Ja.Label("insert"),
	)
}

// dialled looks whether who dialled is in the map of sockets. On loopback that
// end is established first: it sends the ACK that establishes this one.
func dialled() asm.Instructions {
	return join(
		asm.StoreMem(asm.RFP, ownC, asm.R2, asm.Word).WithSymbol("dialled"),
		asm.StoreMem(asm.RFP, ownS, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R3, 1),
		asm.StoreMem(asm.RFP, ownSide, asm.R3, asm.DWord),
		onMap(asm.FnMapLookupElem, mapWaiting, ownKey), // its first 16 bytes
		asm.JEq.Imm(asm.R0, 0, "done"),
		onMap(asm.FnMapDeleteElem, mapWaiting, ownKey),
		asm.Mov.Imm(asm.R9, 0),
		asm.LoadMem(asm.R1, asm.R6, opsLocalPort, asm.Word),
		asm.LoadMem(asm.R2, asm.R8, nsPort, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "insert"),
		asm.Mov.Imm(asm.R9, 1),
	)
}

// insert tells the socket who its other end is, and puts it into the map. Only
// then may the other end be told, which is why the order is as it is.
func insert() asm.Instructions {
	return join(
		asm.LoadMem(asm.R1, asm.RFP, ownKey, asm.DWord).WithSymbol("insert"),
		asm.StoreMem(asm.RFP, end, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, ownC, asm.DWord),
		asm.StoreMem(asm.RFP, end+8, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, ownSide, asm.DWord),
		asm.Xor.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, endSide, asm.R1, asm.DWord),
		asm.StoreImm(asm.RFP, end+endMode, 0, asm.Word),
		asm.StoreMem(asm.RFP, end+endProxy, asm.R9, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, opsSocket, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "done"),
		theMap(asm.R1, mapEnds), stack(asm.R3, end), asm.Mov.Imm(asm.R4, make1),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "full"),
		asm.Mov.Reg(asm.R1, asm.R6), theMap(asm.R2, mapSockets), stack(asm.R3, ownKey), asm.Mov.Imm(asm.R4, noExist),
		asm.FnSockHashUpdate.Call(),
		asm.JNE.Imm(asm.R0, 0, "full"),

		asm.JEq.Imm(asm.R9, 0, "inserted"),
		asm.StoreImm(asm.RFP, scratch, Priority, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, solSocket), asm.Mov.Imm(asm.R3, soPriority), stack(asm.R4, scratch), asm.Mov.Imm(asm.R5, 4),
		asm.FnSetsockopt.Call(),

		asm.JEq.Imm(asm.R7, eventPassive, "paired").WithSymbol("inserted"),
		remember(mapWaiting, ownKey, scratch),
		count(nsCandidates), asm.Ja.Label("done"),
		label("paired", count(nsPaired)), asm.Ja.Label("done"),
		label("full", count(nsFull)), asm.Ja.Label("done"),
	)
}

// announced notes from which port the proxy is being dialled: whoever has it will
// hear of the answer next. It is a hint, by which other connections of apps stay
// out of the map; who belongs to whom the sequence numbers say.
func announced() asm.Instructions {
	return join(
		asm.LoadMem(asm.R1, asm.R6, opsFull, asm.Word).WithSymbol("announced"),
		asm.JNE.Imm(asm.R1, 0, "done"),
		asm.LoadMem(asm.R1, asm.R6, opsLocalPort, asm.Word),
		asm.LoadMem(asm.R2, asm.R8, nsPort, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "done"),
		asm.LoadMem(asm.R1, asm.R6, opsRemotePort, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.StoreMem(asm.RFP, portKeyP, asm.R1, asm.DWord),
		remember(mapAnnounced, portKey, scratch),
	)
}

// count adds 1 to a figure of the namespace.
func count(figure int16) asm.Instructions {
	return join(asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R8, asm.R1, asm.DWord, figure))
}
