package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/meshlab"
)

// showRulesRemoved: in a namespace that has a rule of its own, weir-init
// installs the redirection and takes it away; what is then there is what was
// there before.
func (d *demo) showRulesRemoved(ctx context.Context) (string, error) {
	own := []string{"-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"}
	if _, err := d.spare.Output(ctx, "iptables", append([]string{"-w"}, own...)...); err != nil {
		return "", err
	}
	before, err := netState(ctx, d.spare)
	if err != nil {
		return "", err
	}
	if _, err := d.spare.Output(ctx, d.mesh.Program("weir-init")); err != nil {
		return "", err
	}
	during, err := netState(ctx, d.spare)
	if err != nil {
		return "", err
	}
	if _, err := d.spare.Output(ctx, d.mesh.Program("weir-init"), "--cleanup"); err != nil {
		return "", err
	}
	after, err := netState(ctx, d.spare)
	if err != nil {
		return "", err
	}
	if !strings.Contains(after, strings.Join(own[:2], " ")) || after != before {
		return "", fmt.Errorf("expected after weir-init --cleanup\n%s\nsaw\n%s", before, after)
	}
	added := strings.Count(during, "WEIR_")
	if added == 0 {
		return "", fmt.Errorf("expected rules of weir-init, saw\n%s", during)
	}
	return fmt.Sprintf("weir-init had added %d lines to iptables-save and ip route; after --cleanup both are as before, a rule of the machine's own included",
		strings.Count(during, "\n")-strings.Count(before, "\n")), nil
}

// netState is what weir-init may change in a namespace, as text: rules and
// routes of both families, without what counts and dates.
func netState(ctx context.Context, n *meshlab.Node) (string, error) {
	var all strings.Builder
	for _, command := range []string{"iptables-save", "ip6tables-save", "ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all"} {
		words := strings.Fields(command)
		out, err := n.Output(ctx, words[0], words[1:]...)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%s:\n", command)
		for line := range strings.Lines(out) {
			if !immaterial(line) {
				all.WriteString(line)
			}
		}
	}
	return all.String(), nil
}

// immaterial are comments, and the frame of a table that holds no rule: a table
// looked at once stays listed, empty and accepting everything.
func immaterial(line string) bool {
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, "*") || strings.HasPrefix(line, "COMMIT") ||
		strings.HasPrefix(line, ":") && strings.Contains(line, " ACCEPT [")
}

// remove ends the mesh and makes sure that nothing is left of it. It is not to
// be interrupted: there is nothing to wait for but the kernel.
func (d *demo) remove() error {
	lab := d.mesh.Lab
	inodes := map[uint64]string{}
	named, _ := filepath.Glob("/run/netns/w-" + lab.ID() + "-*") // fails for a bad pattern only
	for _, path := range named {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			inodes[st.Ino] = path
		}
	}
	running := len(processesIn(inodes))
	err := d.mesh.Close()
	left, _ := filepath.Glob("/run/netns/w-" + lab.ID() + "-*")
	for _, pid := range processesIn(inodes) {
		left = append(left, "process "+strconv.Itoa(pid))
	}
	if _, gone := os.Stat(d.mesh.Dir); !errors.Is(gone, os.ErrNotExist) {
		left = append(left, d.mesh.Dir)
	}
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("expected nothing, saw %s", strings.Join(left, ", ")))
	}
	d.removed = fmt.Sprintf("%d namespaces with their rules, %d processes and %s are gone", len(named), running, d.mesh.Dir)
	return err
}

// processesIn lists the processes, other than this one, in network namespaces.
func processesIn(inodes map[uint64]string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc") // what cannot be read cannot be told
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name()+"/ns/net", &st) == nil && inodes[st.Ino] != "" {
			pids = append(pids, pid)
		}
	}
	return pids
}
