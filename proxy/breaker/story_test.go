package breaker

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the outcomes of the stories in testdata")

// A story is a file of steps, each followed by its outcome after a bar:
//
//	70s   send p               | pass as probe; half_open
//
// Steps: send NAME, NAME succeeds|fails|cancels, ready, force open|closed|auto.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(want))
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, want) {
				t.Errorf("the story went otherwise:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func tell(t *testing.T, story string) []byte {
	var out bytes.Buffer
	var c *Circuit
	tickets := map[string]Ticket{}
	for line := range strings.Lines(story) {
		line = strings.TrimSpace(line)
		step, _, _ := strings.Cut(line, "|")
		step = strings.TrimSpace(step)
		if step == "" || step[0] == '#' {
			fmt.Fprintln(&out, line)
			continue
		}
		if c == nil {
			c = begin(t, step)
			fmt.Fprintln(&out, step)
			continue
		}
		words := strings.Fields(step)
		at, err := time.ParseDuration(words[0])
		if err != nil || len(words) < 2 {
			t.Fatalf("%q: %v", line, err)
		}
		now := epoch.Add(at)
		outcome := act(t, c, tickets, words[1:], now)
		fmt.Fprintf(&out, "%-28s | %s%s", step, outcome, c.State(now))
		if n := c.Failures(); n > 0 {
			fmt.Fprintf(&out, ", %d failed", n)
		}
		fmt.Fprintln(&out)
	}
	return out.Bytes()
}

func begin(t *testing.T, step string) *Circuit {
	var cfg Config
	var timeout string
	if _, err := fmt.Sscanf(step, "threshold %d timeout %s", &cfg.Threshold, &timeout); err != nil {
		t.Fatalf("%q: %v", step, err)
	}
	cfg.Timeout, _ = time.ParseDuration(timeout)
	c, err := New(cfg, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func act(t *testing.T, c *Circuit, tickets map[string]Ticket, words []string, now time.Time) string {
	switch {
	case words[0] == "send":
		ticket, ok := c.Allow(now)
		if !ok {
			return "refused; "
		}
		tickets[words[1]] = ticket
		if ticket.Probe() {
			return "pass as probe; "
		}
		return "pass; "
	case words[0] == "ready":
		return fmt.Sprintf("%v; ", c.Ready(now))
	case words[0] == "force":
		c.Force(map[string]Mode{"open": ForceOpen, "closed": ForceClosed, "auto": Auto}[words[1]])
		return ""
	case words[1] == "succeeds":
		if c.Success(now, tickets[words[0]]) {
			return "closes; "
		}
	case words[1] == "fails":
		if c.Failure(now, tickets[words[0]]) {
			return "opens; "
		}
	case words[1] == "cancels":
		c.Cancel(tickets[words[0]])
	default:
		t.Fatalf("unknown step %v", words)
	}
	return ""
}
