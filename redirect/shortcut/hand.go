package shortcut

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// proxyUnread is Unread for what the proxy sends, which it does not reach because
// it asks by itself what is unread (proxy/loop). It must not: an app may take one
// short read to mean that nothing is left, as epoll(7) says it may, so what it
// gets must not change its way. The proxy, which may get such a mixture, knows.
const proxyUnread = 2 * Unread

const (
	msgSocket   = 72 // struct sk_msg_md, include/uapi/linux/bpf.h
	toIngress   = 1  // BPF_F_INGRESS
	verdictPass = 1  // SK_PASS: to the other end where one was found, else through TCP
)

// hand is the program that is asked for each message of a socket in the map.
//
// R6 is the context, R7 the socket's entry in mapEnds.
func hand(k kernel) *ebpf.ProgramSpec {
	ins := join(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, msgSocket, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "plain"),
		theMap(asm.R1, mapEnds), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "plain"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R1, asm.R7, endMode, asm.Word),
		asm.JEq.Imm(asm.R1, modePlain, "plain"),
		asm.JEq.Imm(asm.R1, modeHanded, "hand"),
		unsent(k),
		asm.StoreImm(asm.R7, endMode, modeHanded, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("hand"), theMap(asm.R2, mapSockets), asm.Mov.Reg(asm.R3, asm.R7), asm.Mov.Imm(asm.R4, toIngress),
		asm.FnMsgRedirectHash.Call(),
		asm.JEq.Imm(asm.R0, verdictPass, "found"),
		// Not there yet, or gone. Were the next message handed over, it could
		// overtake this one.
		asm.StoreImm(asm.R7, endMode, modePlain, asm.Word).WithSymbol("never"),
		asm.Mov.Imm(asm.R1, figPlain).WithSymbol("plain"),
		asm.Ja.Label("count"),

		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("found"),
		kernelFunction(k.castToKernel),
		asm.LoadMem(asm.R1, asm.R0, k.redirectedTo, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "handed"),
		asm.LoadMem(asm.R1, asm.R1, k.queued, asm.Word),
		asm.JLT.Imm(asm.R1, Unread, "handed"),
		asm.LoadMem(asm.R2, asm.R7, endProxy, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "last"),
		asm.JLT.Imm(asm.R1, proxyUnread, "handed"),
		// TCP's window bounds the rest. A redirection cannot be taken back, so
		// this message still goes. SK_DROP instead, to have the sender wait, would
		// be for good: the kernel does not ask again after it (psock->eval).
		asm.StoreImm(asm.R7, endMode, modePlain, asm.Word).WithSymbol("last"),
		asm.Mov.Imm(asm.R1, figLast),
		asm.Ja.Label("count"),
		asm.Mov.Imm(asm.R1, figHanded).WithSymbol("handed"),

		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word).WithSymbol("count"),
		onMap(asm.FnMapLookupElem, mapFigures, -4),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, verdictPass).WithSymbol("done"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: "weir_hand", Type: ebpf.SkMsg, AttachType: ebpf.AttachSkMsgVerdict, Instructions: ins, License: licence}
}

// unsent goes to "never" where the socket has sent by TCP already. Its first
// message may come through a call that was made before it was in the map, as with
// TCP Fast Open (RFC 7413), and waited for the handshake in TCP's code.
func unsent(k kernel) asm.Instructions {
	return join(
		asm.LoadMem(asm.R1, asm.R6, msgSocket, asm.DWord),
		asm.FnSkcToTcpSock.Call(),
		asm.JEq.Imm(asm.R0, 0, "never"),
		asm.LoadMem(asm.R1, asm.R0, k.written, asm.Word),
		asm.LoadMem(asm.R2, asm.R7, keyServer, asm.Word), // ours if the other end dialled
		asm.LoadMem(asm.R3, asm.R7, keySide, asm.Word),
		asm.JEq.Imm(asm.R3, 0, "began"),
		asm.LoadMem(asm.R2, asm.R7, keyClient, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "never").WithSymbol("began"),
	)
}
