package main

import (
	"fmt"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// confine hides this process, before it has a key, and says what rights it was
// given for nothing.
func (f *flags) confine(log *zap.Logger) error {
	if err := hide(); err != nil {
		return err
	}
	p, err := effective()
	if err != nil {
		return err
	}
	if extra := f.needless(p); len(extra) > 0 {
		log.Warn("the proxy has capabilities that it does not need; start it without them (docs/PRIVILEGES.md)", zap.Strings("capabilities", extra))
	}
	return nil
}

// hide keeps the keys of this process from other programs of its user: it leaves
// no core file, and what /proc shows of its memory and its environment is root's
// (prctl(2), PR_SET_DUMPABLE).
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep other programs from this one's memory: %w", err)
	}
	return nil
}

// privileges are bits of capability numbers (linux/capability.h).
type privileges uint64

func (p privileges) has(capability int) bool { return p>>capability&1 != 0 }

// effective is what this process may do beyond its user's rights.
func effective() (privileges, error) {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	if err != nil {
		return 0, fmt.Errorf("read the capabilities of this process: %w", err)
	}
	return privileges(data[0].Effective) | privileges(data[1].Effective)<<32, nil
}

// needless are those in p that a proxy with these flags has no use for. Either
// of two capabilities is good for marks; CAP_NET_RAW, the smaller, is not until
// Linux 5.17, so CAP_NET_ADMIN by itself is not needless.
func (f *flags) needless(p privileges) []string {
	used := privileges(0)
	if f.mark != "none" {
		used |= 1 << unix.CAP_NET_RAW
		if !p.has(unix.CAP_NET_RAW) {
			used |= 1 << unix.CAP_NET_ADMIN
		}
	}
	if f.lowPort() {
		used |= 1 << unix.CAP_NET_BIND_SERVICE
	}
	var names []string
	for n := range capabilities {
		if p.has(n) && !used.has(n) {
			names = append(names, "CAP_"+capabilities[n])
		}
	}
	return names
}

// lowPort tells whether a port is asked for that is kept for who may have it.
func (f *flags) lowPort() bool {
	from := uint64(1024)
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		_, _ = fmt.Sscan(string(b), &from) // else it stays the kernel's default
	}
	return uint64(min(f.outboundPort, f.inboundPort, f.dnsPort)) < from
}

// capabilities by number, as in linux/capability.h of Linux 6.18.
var capabilities = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}
