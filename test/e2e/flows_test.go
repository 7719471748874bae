package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// flowStory is the mesh of docs/FLOWS.md.
type flowStory struct {
	*meshlab.Mesh
	hosts map[string]*meshlab.Node
	dir   string
	ids   map[string]string // the names that stand for ids in the text
}

func newFlowStory(t *testing.T) *flowStory {
	m := start(t)
	users := bare(t, m, "users")
	serve(t, users, "users", 8001, nil)
	enter(t, m, users, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	s := &flowStory{Mesh: m, dir: t.TempDir(), ids: map[string]string{}, hosts: map[string]*meshlab.Node{
		"frontend": join(t, m, meshlab.Workload{Host: "frontend", Service: "frontend"}),
		"batch":    join(t, m, meshlab.Workload{Host: "batch", Service: "batch"}),
	}}
	s.ids["ANYBODY"] = s.rule(t, policy.SecurityRule{SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "users", AllowedMethods: []string{"*"}})
	await(t, m, "the rule", func() error {
		if a := ask(t, s.hosts["frontend"], "http://users:8001/warm"); a.Status != 200 {
			return fmt.Errorf("%d", a.Status)
		}
		return nil
	})
	return s
}

func (s *flowStory) rule(t *testing.T, r policy.SecurityRule) string {
	t.Helper()
	id, err := s.API.AddSecurityRule(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// run gives what a command prints, whatever its exit status.
func (s *flowStory) run(t *testing.T, host, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, id := range s.ids {
		command = strings.ReplaceAll(command, name, id)
	}
	at := s.Host
	if host != "" {
		at = s.hosts[host].Host
	}
	cmd := s.Command(ctx, at, "sh", "-c", "cd "+s.dir+"; weir() { "+s.Program("weir")+` "$@"; }; `+command)
	cmd.Env = append(os.Environ(), "WEIR_TOKEN_FILE="+s.TokenFile())
	out, _ := cmd.Output()
	return string(out)
}

var (
	consoleBlock = regexp.MustCompile("(?s)```console\n(.*?)```")
	totals       = regexp.MustCompile(`weir check|what-if`)
	promptLine   = regexp.MustCompile(`^([a-z]*)\$ (.*)$`)
)

// holds tells which line of a claim is not among those printed.
func (s *flowStory) holds(command, out string, claim []string) error {
	// Calls that only wait for a rule are counted too: in totals no number holds.
	words := func(line string) string {
		fields := strings.Fields(line)
		for i, f := range fields {
			if strings.Trim(f, "0123456789") == "" && totals.MatchString(command) {
				fields[i] = "N"
			}
		}
		return strings.Join(fields, " ")
	}
	printed := map[string]bool{}
	for line := range strings.Lines(out) {
		printed[words(line)] = true
	}
	for _, line := range claim {
		for name, id := range s.ids {
			line = strings.ReplaceAll(line, name, id)
		}
		want := words(line)
		found := printed[want]
		for have := range printed { // columns of times may follow, and ids
			found = found || strings.HasPrefix(have, want+" ")
		}
		if !found {
			return fmt.Errorf("%q is not in\n%s", want, out)
		}
	}
	return nil
}

// TestTheExamplesOfFLOWSAreTrue runs the commands of docs/FLOWS.md. What must
// first be told, by proxies or to them, is asked for until it is there; calls that
// count are made once.
func TestTheExamplesOfFLOWSAreTrue(t *testing.T) {
	t.Parallel()
	s := newFlowStory(t)
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "FLOWS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range consoleBlock.FindAllStringSubmatch(string(text), -1) {
		lines := strings.Split(strings.TrimSuffix(block[1], "\n"), "\n")
		for i := 0; i < len(lines); {
			m := promptLine.FindStringSubmatch(lines[i])
			if m == nil {
				t.Fatalf("no command: %q", lines[i])
			}
			var claim []string
			for i++; i < len(lines) && !promptLine.MatchString(lines[i]); i++ {
				claim = append(claim, lines[i])
			}
			s.step(t, m[1], m[2], claim)
		}
	}
}

func (s *flowStory) step(t *testing.T, host, command string, claim []string) {
	t.Helper()
	if host == "" && strings.HasPrefix(command, "weir ") && !strings.Contains(command, "delete") && !strings.Contains(command, "apply") || strings.Contains(command, "what-if") {
		await(t, s.Mesh, command, func() error { return s.holds(command, s.run(t, host, command), claim) })
		return
	}
	if host != "" {
		s.await(t, host, command, claim)
	}
	out := s.run(t, host, command)
	if err := s.holds(command, out, claim); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if m := regexp.MustCompile(`frontend -> default/users added (\S+)`).FindStringSubmatch(out); m != nil {
		s.ids["SUGGESTED"] = m[1]
	}
}

// await waits until the rules are in force that decide about a call, by calls to
// another path: /warm is not in the text.
func (s *flowStory) await(t *testing.T, host, command string, claim []string) {
	t.Helper()
	probe := regexp.MustCompile(`/orders\S*`).ReplaceAllString(command, "/health")
	await(t, s.Mesh, "the rules for "+command, func() error { return s.holds(probe, s.run(t, host, probe), claim) })
}
