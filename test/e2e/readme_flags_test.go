package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var updateREADME = flag.Bool("update-readme", false, "write the README's tables of flags anew")

// TestTheTablesOfFlagsAreWhatHelpSays compares every table of flags with what
// the program prints, and wants a table for every command that has flags.
func TestTheTablesOfFlagsAreWhatHelpSays(t *testing.T) {
	t.Parallel()
	file := filepath.Join(root, "README.md")
	text := readDocument(t, "README.md")
	tables := map[string]string{"weir …": commonFlags(t)}
	for _, program := range []string{"weir", "weir-proxy", "weir-init"} {
		for _, command := range commands(t, program) {
			if table := flagTable(ownFlags(t, command)); table != "" {
				tables[command] = table
			}
		}
	}
	marker := regexp.MustCompile(`(?ms)^<!-- flags of (.*?) -->\n(.*?)\n\n`)
	updated := marker.ReplaceAllStringFunc(text, func(block string) string {
		m := marker.FindStringSubmatch(block)
		command, have := m[1], m[2]
		want, known := tables[command]
		delete(tables, command)
		switch {
		case !known:
			t.Errorf("README.md has a table of flags of %q, which has none", command)
		case have != want && !*updateREADME:
			t.Errorf("README.md, flags of %s:\n%s\n--help says:\n%s\n(go test ./test/e2e -run Flags -update-readme)", command, have, want)
		}
		return fmt.Sprintf("<!-- flags of %s -->\n%s\n\n", command, want)
	})
	for command, table := range tables {
		t.Errorf("README.md has no table of the flags of %q:\n<!-- flags of %s -->\n%s\n", command, command, table)
	}
	if *updateREADME {
		if err := os.WriteFile(file, []byte(updated), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// help is what a command prints for --help, in an environment where defaults
// do not depend on who asks.
func help(t *testing.T, command string) string {
	t.Helper()
	args := strings.Fields(command)
	cmd := exec.Command(filepath.Join(programs(t), args[0]), append(args[1:], "--help")...)
	cmd.Env = []string{"WEIR_DATA_DIR=/var/lib/weir"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", command, err, out)
	}
	return string(out)
}

// commands lists a command and all below it.
func commands(t *testing.T, command string) []string {
	t.Helper()
	out := []string{command}
	_, list, _ := strings.Cut(help(t, command), "\nAvailable Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" {
			out = append(out, commands(t, command+" "+name)...)
		}
	}
	return out
}

// flagRow is one line of --help.
type flagRow struct{ name, short, kind, fallback, text string }

var (
	flagLine    = regexp.MustCompile(`^ +(?:-(\w), )?--([a-z0-9-]+)(?: (\S+))? {3,}(.*)$`)
	defaultText = regexp.MustCompile(`^(.*) \(default (.*)\)$`)
)

func flagRows(t *testing.T, command string) []flagRow {
	t.Helper()
	var out []flagRow
	for line := range strings.Lines(help(t, command)) {
		m := flagLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || m[2] == "help" || m[2] == "version" {
			continue
		}
		r := flagRow{short: m[1], name: m[2], kind: m[3], text: m[4]}
		if d := defaultText.FindStringSubmatch(r.text); d != nil {
			r.text, r.fallback = d[1], strings.Trim(d[2], `"`)
		}
		out = append(out, r)
	}
	return out
}

// common are the flags that the operator's commands share.
var common = map[string]bool{"server": true, "token-file": true, "ca-file": true, "output": true}

func ownFlags(t *testing.T, command string) []flagRow {
	t.Helper()
	var out []flagRow
	for _, r := range flagRows(t, command) {
		if !strings.HasPrefix(command, "weir ") || !common[r.name] {
			out = append(out, r)
		}
	}
	return out
}

func commonFlags(t *testing.T) string {
	t.Helper()
	var shared []flagRow
	for _, r := range flagRows(t, "weir get services") {
		if common[r.name] {
			shared = append(shared, r)
		}
	}
	return flagTable(shared)
}

func flagTable(rows []flagRow) string {
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	for _, r := range rows {
		name := "`--" + r.name + "`"
		if r.short != "" {
			name = "`-" + r.short + "`, " + name
		}
		if r.kind != "" {
			name += " " + r.kind
		}
		fallback := ""
		if r.fallback != "" {
			fallback = "`" + r.fallback + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, fallback, strings.ReplaceAll(r.text, "|", `\|`))
	}
	return strings.TrimSuffix(b.String(), "\n")
}
