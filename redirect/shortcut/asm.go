package shortcut

import (
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The programs are written as instructions, so that no compiler and no object
// file is needed: asm.Instructions joined from these.

// licence of the programs as the kernel wants to know it: functions of its own,
// such as bpf_cast_to_kern_ctx, are open to GPL-compatible programs only.
const licence = "Dual MIT/GPL"

func join(parts ...any) (out asm.Instructions) {
	for _, p := range parts {
		switch p := p.(type) {
		case asm.Instruction:
			out = append(out, p)
		case asm.Instructions:
			out = append(out, p...)
		}
	}
	return out
}

// label names the first of some instructions, for jumps.
func label(name string, ins asm.Instructions) asm.Instructions {
	ins[0] = ins[0].WithSymbol(name)
	return ins
}

// theMap puts a map into dst.
func theMap(dst asm.Register, name string) asm.Instruction {
	return asm.LoadMapPtr(dst, 0).WithReference(name)
}

// stack puts the address of a place on the stack into dst.
func stack(dst asm.Register, at int32) asm.Instructions {
	return join(asm.Mov.Reg(dst, asm.RFP), asm.Add.Imm(dst, at))
}

// onMap calls a helper that takes a map and a key, which is on the stack.
func onMap(helper asm.BuiltinFunc, name string, key int32) asm.Instructions {
	return join(theMap(asm.R1, name), stack(asm.R2, key), helper.Call())
}

// remember puts a key that is on the stack into a map; it uses 4 bytes of the stack.
func remember(name string, key, scratch int32) asm.Instructions {
	return join(
		asm.StoreImm(asm.RFP, int16(scratch), 1, asm.Word),
		theMap(asm.R1, name), stack(asm.R2, key), stack(asm.R3, scratch), asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	)
}

// kernelFunction calls one of the kernel's functions that are open to programs.
func kernelFunction(id btf.TypeID) asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: int64(id)}
}
