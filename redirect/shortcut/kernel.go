package shortcut

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// kernel is what must be known of the running kernel, from its own description
// (BTF, /sys/kernel/btf/vmlinux): where fields are that no stable interface gives.
type kernel struct {
	castToKernel btf.TypeID // of the function that turns a program's context into the kernel's
	redirectedTo int16      // struct sk_msg: the socket that gets the bytes
	queued       int16      // struct sock: bytes that wait to be read, as it is charged for them
	written      int16      // struct tcp_sock: the sequence number after what was written, sent or not
}

func readKernel() (k kernel, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return k, fmt.Errorf("read the kernel's description of itself (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	var fn *btf.Func
	if err := spec.TypeByName("bpf_cast_to_kern_ctx", &fn); err != nil {
		return k, fmt.Errorf("the kernel lacks bpf_cast_to_kern_ctx (Linux 6.2): %w", err)
	}
	if k.castToKernel, err = spec.TypeID(fn); err != nil {
		return k, err
	}
	if k.redirectedTo, err = offset(spec, "sk_msg", "sk_redir"); err != nil {
		return k, err
	}
	if k.queued, err = offset(spec, "sock", "sk_backlog", "rmem_alloc", "counter"); err != nil {
		return k, err
	}
	k.written, err = offset(spec, "tcp_sock", "write_seq")
	return k, err
}

// offset is where a field is in a struct of the kernel, in bytes.
func offset(spec *btf.Spec, of string, path ...string) (int16, error) {
	var s *btf.Struct
	if err := spec.TypeByName(of, &s); err != nil {
		return 0, fmt.Errorf("struct %s of the kernel: %w", of, err)
	}
	var at btf.Bits
	for _, name := range path {
		m, ok := member(s, name)
		if !ok {
			return 0, fmt.Errorf("struct %s of the kernel has no %v", of, path)
		}
		at += m.Offset
		s, _ = btf.UnderlyingType(m.Type).(*btf.Struct)
	}
	return int16(at.Bytes()), nil
}

func member(s *btf.Struct, name string) (btf.Member, bool) {
	if s != nil {
		for _, m := range s.Members {
			if m.Name == name {
				return m, true
			}
		}
	}
	return btf.Member{}, false
}
