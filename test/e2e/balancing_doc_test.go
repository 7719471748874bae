package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// newShop is the mesh of docs/BALANCING.md.
func newShop(t *testing.T) *farm {
	f := &farm{Mesh: start(t), ports: 8000}
	set(t, f.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	f.host = bare(t, f.Mesh, "shops")
	f.front = join(t, f.Mesh, meshlab.Workload{Host: "front", Service: "frontend", Labels: []string{"zone=a"}})
	for i, id := range []string{"shop-a1", "shop-a2", "shop-b1", "shop-b2"} {
		var flaky atomic.Int64
		port := 8001 + i
		serve(t, f.host, id, port, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/slow":
				time.Sleep(300 * time.Millisecond)
			case "/flaky":
				if id == "shop-b1" && flaky.Add(1)%2 == 0 {
					w.WriteHeader(http.StatusInternalServerError)
				}
			}
			_, _ = fmt.Fprintln(w, id)
		})
		e := policy.DefaultEndpoint()
		e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = id, "shop", "default", f.host.Addr4().String(), port
		e.Labels = map[string]string{"zone": id[5:6]}
		if id == "shop-b2" {
			e.Weight = 300
		}
		if err := f.API.Register(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

var docBlock = regexp.MustCompile("(?ms)^```(yaml|sh|text)\n(.*?)^```$")

func TestBalancingDoesWhatItsDocumentSays(t *testing.T) {
	t.Parallel()
	f := newShop(t)
	sections := strings.Split(readDocument(t, "docs/BALANCING.md"), "\n## ")[1:]
	if len(sections) != 8 {
		t.Errorf("docs/BALANCING.md has %d sections", len(sections))
	}
	for _, text := range sections {
		heading, body, _ := strings.Cut(text, "\n")
		t.Run(strings.ReplaceAll(heading, " ", ""), func(t *testing.T) {
			blocks := docBlock.FindAllStringSubmatch(body, -1)
			if len(blocks) < 3 {
				t.Fatalf("it has %d blocks", len(blocks))
			}
			commands := ""
			for _, b := range blocks {
				switch b[1] {
				case "yaml":
					f.apply(t, b[2])
				case "sh":
					commands = b[2]
				case "text":
					f.prints(t, commands, strings.Split(strings.TrimRight(b[2], "\n"), "\n"))
				}
			}
		})
	}
}

// apply gives the documents to weir apply. What an example before it set is gone:
// a service's settings are replaced as a whole, the mesh's here.
func (f *farm) apply(t *testing.T, documents string) {
	t.Helper()
	set(t, f.Mesh, `{"load_balancing":{"slow_start":0,"slow_start_aggression":1,"panic_threshold":0},"resilience":{"retry":{"enabled":true},"overload":{"max_concurrent":0}}}`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := f.Command(ctx, f.Host, f.Program("weir"), "apply", "-f", "-", "--token-file", f.TokenFile())
	cmd.Stdin = strings.NewReader(documents)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("weir apply: %v\n%s\n%s", err, out, documents)
	}
}

// prints runs commands until they print what is claimed: a change takes a moment
// to arrive. Those of the operator run beside the control plane.
func (f *farm) prints(t *testing.T, commands string, claim []string) {
	t.Helper()
	await(t, f.Mesh, "what is claimed of\n"+commands, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var cmd *exec.Cmd
		if rest, ok := strings.CutPrefix(commands, "weir "); ok {
			cmd = f.Command(ctx, f.Host, "sh", "-c", f.Program("weir")+" "+strings.TrimSpace(rest)+" --token-file "+f.TokenFile())
		} else {
			cmd = f.Command(ctx, f.front.Host, "sh", "-c", commands)
		}
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if line := claimed(string(out), claim); line != "" || strings.Count(string(out), "\n") != len(claim) {
			return fmt.Errorf("missing is %q of\n%s\nprinted is\n%s", line, strings.Join(claim, "\n"), out)
		}
		return nil
	})
}
