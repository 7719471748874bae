package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// tools is iptables of one family and back end.
type tools struct {
	v6   bool
	base string // the command's path; -save and -restore are beside it
	plus string // what comes after: /sbin/iptables + -nft-save
}

func (t tools) save() string    { return t.base + t.plus + "-save" }
func (t tools) restore() string { return t.base + t.plus + "-restore" }
func (t tools) command() string { return t.base + t.plus }

var errNoIptables = errors.New("iptables not found: apt-get install iptables, or apk add iptables")

// findTools looks for the iptables of a family and back end: under its own name
// (iptables-nft), else under the plain one if that says it is of this back end.
func findTools(ctx context.Context, v6 bool, backend Mode) (tools, error) {
	base := familyPlan{v6: v6}.command()
	if path := lookPath(base + "-" + string(backend)); path != "" {
		t := tools{v6: v6, base: strings.TrimSuffix(path, "-"+string(backend)), plus: "-" + string(backend)}
		return t, t.complete()
	}
	path := lookPath(base)
	if path == "" {
		return tools{}, fmt.Errorf("%s of the %s back end: %w", base, backend, errNoIptables)
	}
	version, err := run(ctx, "", path, "--version")
	if err != nil {
		return tools{}, err
	}
	is := ModeLegacy // before 1.8 there was no other, and no word for it
	if strings.Contains(version, "nf_tables") {
		is = ModeNFT
	}
	if is != backend {
		return tools{}, fmt.Errorf("%s of the %s back end: %w (%s is of the %s back end)", base, backend, errNoIptables, path, is)
	}
	t := tools{v6: v6, base: path}
	return t, t.complete()
}

func (t tools) complete() error {
	for _, path := range []string{t.save(), t.restore()} {
		if _, err := exec.LookPath(path); err != nil {
			return fmt.Errorf("%s is missing beside %s: %w", path, t.command(), errNoIptables)
		}
	}
	return nil
}

// lookPath also looks where system programs are, which is not in every PATH.
func lookPath(name string) string {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	return ""
}

// state is our part as the kernel has it, and how many rules others have.
func (t tools) state(ctx context.Context) (ours []table, foreign int, err error) {
	out, err := run(ctx, "", t.save())
	if err != nil {
		return nil, 0, err
	}
	ours, foreign = parseSave(out)
	return ours, foreign, nil
}

// lockWait is how many seconds to wait for others who are changing rules.
const lockWait = 20

func (t tools) apply(ctx context.Context, text string) error {
	if text == "" {
		return nil
	}
	_, err := run(ctx, text, t.restore(), "--noflush", "-w", strconv.Itoa(lockWait))
	return err
}

// probeChain is where probe tries; its name makes it ours, so that a crash
// within probe is mended like any other.
const probeChain = chainPrefix + "PROBE"

// probe proves that the back end works here by a redirection in a chain that
// nothing leads to.
func (t tools) probe() error {
	proto := iptables.ProtocolIPv4
	if t.v6 {
		proto = iptables.ProtocolIPv6
	}
	ipt, err := iptables.New(iptables.Path(t.command()), iptables.IPFamily(proto), iptables.Timeout(lockWait))
	if err != nil {
		return explain(t.command(), err)
	}
	if err := ipt.ClearChain("nat", probeChain); err != nil { // makes it
		return explain(t.command(), err)
	}
	err = ipt.Append("nat", probeChain, "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1")
	return explain(t.command(), errors.Join(err, ipt.ClearAndDeleteChain("nat", probeChain)))
}

// run runs a program in the network namespace of the calling thread.
func run(ctx context.Context, input, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		said := withoutWarnings(errOut.String())
		return "", explain(path, fmt.Errorf("%w: %s%s", err, said, quoteLine(input, said)))
	}
	return out.String(), nil
}

// withoutWarnings drops what nft says about tables of the other back end.
func withoutWarnings(s string) string {
	var keep []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "# Warning") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "; ")
}

// quoteLine adds the line of input that iptables-restore names by its number only.
func quoteLine(input, said string) string {
	lower := strings.ToLower(said)
	_, after, ok := strings.Cut(lower, "line ")
	if !ok {
		if _, after, ok = strings.Cut(lower, "line: "); !ok {
			return ""
		}
	}
	digits := strings.TrimLeft(after, ": ")
	if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		digits = digits[:end]
	}
	n, err := strconv.Atoi(digits)
	lines := strings.Split(input, "\n")
	if err != nil || n < 1 || n > len(lines) || lines[n-1] == "" {
		return ""
	}
	return fmt.Sprintf(" (line %d is %q)", n, lines[n-1])
}

// ErrNotPermitted is what Apply, Remove and Verify return when the process may
// not change the namespace's rules.
var ErrNotPermitted = errors.New("not permitted: CAP_NET_ADMIN in this network namespace is needed")

// explain names the program and, where the kernel refused, what is needed.
func explain(path string, err error) error {
	if err == nil {
		return nil
	}
	text := strings.ToLower(err.Error()) // the kernel's words, by Go or by a program
	for _, refusal := range []string{"permission denied", "operation not permitted", "you must be root"} {
		if strings.Contains(text, refusal) {
			return fmt.Errorf("%s: %w (%w)", path, ErrNotPermitted, err)
		}
	}
	return fmt.Errorf("%s: %w", path, err)
}
