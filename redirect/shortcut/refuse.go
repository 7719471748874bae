package shortcut

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// struct bpf_sockopt, include/uapi/linux/bpf.h.
const (
	sockoptSocket = 0
	sockoptLevel  = 24
	sockoptName   = 28

	solTCP = 6
	tcpULP = 31
)

// refuse is the program that keeps kernel TLS (TCP_ULP) from sockets that take
// the short cut: it would hand over plain text before it is encrypted, and take
// for plain text what has been handed over encrypted. TLS libraries try, and do
// the work themselves when told EPERM.
func refuse() *ebpf.ProgramSpec {
	ins := join(
		asm.LoadMem(asm.R2, asm.R1, sockoptLevel, asm.Word),
		asm.JNE.Imm(asm.R2, solTCP, "allow"),
		asm.LoadMem(asm.R2, asm.R1, sockoptName, asm.Word),
		asm.JNE.Imm(asm.R2, tcpULP, "allow"),
		asm.LoadMem(asm.R2, asm.R1, sockoptSocket, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "allow"),
		theMap(asm.R1, mapEnds), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: "weir_refuse", Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, Instructions: ins, License: licence}
}
