package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// What the README says is checked here, so that it cannot drift from what the
// programs do.

const root = "../.."

func readDocument(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section is the text under a heading of the second level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("README.md has no section %q", heading)
	}
	body, _, _ := strings.Cut(rest, "\n## ")
	return body
}

// step is a block of commands and what the README claims that they print.
type step struct {
	commands string
	output   []string
}

var fence = regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$")

func steps(body string) []step {
	var out []step
	for _, m := range fence.FindAllStringSubmatch(body, -1) {
		if m[1] == "sh" {
			out = append(out, step{commands: m[2]})
		} else if len(out) > 0 {
			last := &out[len(out)-1]
			last.output = append(last.output, strings.Split(strings.TrimSpace(m[2]), "\n")...)
		}
	}
	return out
}

// mark is printed between two steps. No program prints it.
const mark = "\x1e"

// inShell runs all steps in one shell, in namespaces that end with it, and
// gives what each printed.
func inShell(t *testing.T, all []step) []string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(programs(t), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, s := range all {
		fmt.Fprintf(&script, "printf '%s'\n%s\n", mark, s.commands)
	}
	if err := os.WriteFile(filepath.Join(dir, "steps.sh"), []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// A PID namespace, so that all that was started ends with the shell; /proc is
	// its own where the kernel lets it be.
	const enter = `mount -t proc proc /proc 2>/dev/null || true
mount -t tmpfs tmpfs /run && ip link set lo up && exec sh -eu steps.sh`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", enter)
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	printed := strings.Split(out.String(), mark)[1:]
	if err != nil {
		n := max(len(printed), 1)
		t.Fatalf("step %d: %v\n%s\nprinted:\n%s", n, err, all[n-1].commands, out.String())
	}
	return printed
}

// programs is the directory of weir's programs.
func programs(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("WEIR_BIN")
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// claimed tells which line of a claim is not in what was printed, in order.
// An ellipsis in a claim stands for anything.
func claimed(printed string, claim []string) (missing string) {
	lines := strings.Split(strings.ReplaceAll(printed, "\r", ""), "\n")
	for _, want := range claim {
		parts := strings.Split(strings.TrimRight(want, " "), "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		at := slices.IndexFunc(lines, func(l string) bool { return pattern.MatchString(strings.TrimRight(l, " ")) })
		if at < 0 {
			return want
		}
		lines = lines[at+1:]
	}
	return ""
}

func follow(t *testing.T, heading string) {
	t.Helper()
	all := steps(section(t, readDocument(t, "README.md"), heading))
	if len(all) < 5 {
		t.Fatalf("section %q has %d steps only", heading, len(all))
	}
	for i, printed := range inShell(t, all) {
		if line := claimed(printed, all[i].output); line != "" {
			t.Errorf("step %d:\n%s\nshould print:\n%s\nprinted:\n%s", i+1, all[i].commands, line, printed)
		}
	}
}

func TestTheTourOfTheREADMEWorksAsWritten(t *testing.T) {
	t.Parallel()
	follow(t, "By hand")
}

func TestTheSeveralControlPlanesOfTheREADMEWorkAsWritten(t *testing.T) {
	t.Parallel()
	follow(t, "Several control planes")
}

func TestTheRunsOfTheREADMEWorkAsWritten(t *testing.T) {
	t.Parallel()
	follow(t, "One program")
}

func TestTheAPIExamplesOfTheREADMEWorkAsWritten(t *testing.T) {
	t.Parallel()
	follow(t, "REST API")
}

func TestTheMeshFileOfTheREADMEIsFollowedAsWritten(t *testing.T) {
	t.Parallel()
	follow(t, "The mesh file")
}

func TestAClaimIsFoundInOrderOnly(t *testing.T) {
	const printed = "one\ntwo 2\nthree\n"
	for _, c := range []struct {
		claim []string
		want  string
	}{
		{[]string{"one", "three"}, ""},
		{[]string{"two …"}, ""},
		{[]string{"three", "one"}, "one"},
		{[]string{"two"}, "two"},
	} {
		if got := claimed(printed, c.claim); got != c.want {
			t.Errorf("%q: missing %q, want %q", c.claim, got, c.want)
		}
	}
}

func TestTheDocumentsOfTheREADMEAreValid(t *testing.T) {
	t.Parallel()
	found := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(readDocument(t, "README.md"), -1)
	if len(found) == 0 {
		t.Fatal("README.md has no documents for weir apply")
	}
	for _, m := range found {
		cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), "weir"), "validate", "-f", "-")
		cmd.Stdin = strings.NewReader(m[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, m[1])
		}
	}
}

var tableRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\| ([^|]*) \\|")

func TestTheREADMEListsEverySettingWithItsDefault(t *testing.T) {
	t.Parallel()
	listed := map[string]string{}
	for _, m := range tableRow.FindAllStringSubmatch(section(t, readDocument(t, "README.md"), "Settings"), -1) {
		listed[m[1]] = strings.Trim(m[2], "` ")
	}
	defaults := policy.DefaultSettings()
	values := flatten(t, "", &defaults)
	effective, err := defaults.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range flatten(t, "", effective) {
		values[key] = value // the short spellings, too
	}
	for _, key := range settingKeys("", reflect.TypeFor[policy.Settings]()) {
		if _, ok := values[key]; !ok {
			values[key] = "" // nothing unless it is set
		}
	}
	delete(values, "services")
	for key, want := range values {
		got, ok := listed[key]
		switch {
		case !ok:
			t.Errorf("the setting %s is not listed", key)
		case got != want && got != "not set":
			t.Errorf("%s: the README says that the default is %q; it is %q", key, got, want)
		}
		delete(listed, key)
	}
	for key := range listed {
		t.Errorf("%s is listed, and no setting", key)
	}
}

// flatten gives the leaves of a value by their paths.
func flatten(t *testing.T, path string, v any) map[string]string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	obj, ok := tree.(map[string]any)
	if s, isText := tree.(string); isText {
		out[path] = s
	} else if !ok || len(obj) == 0 {
		out[path] = string(b)
	}
	for key, child := range obj {
		for k, v := range flatten(t, strings.TrimPrefix(path+"."+key, "."), child) {
			out[k] = v
		}
	}
	return out
}

// settingKeys gives the paths of a type's leaves; NAME stands for a service.
func settingKeys(path string, typ reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Pointer:
		return settingKeys(path, typ.Elem())
	case reflect.Map:
		return settingKeys(path+".NAME", typ.Elem())
	case reflect.Struct:
		var out []string
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			out = append(out, settingKeys(strings.TrimPrefix(path+"."+name, "."), typ.Field(i).Type)...)
		}
		return out
	}
	return []string{path}
}

func TestTheREADMEListsEveryRouteOfTheAPI(t *testing.T) {
	t.Parallel()
	m := start(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.API.BaseURL+"/api/v1/openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.API.Token)
	resp, err := m.API.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(body, &document); err != nil || len(document.Paths) == 0 {
		t.Fatalf("%v, %d paths in %s", err, len(document.Paths), body)
	}
	text := section(t, readDocument(t, "README.md"), "REST API")
	for path, methods := range document.Paths {
		for method := range methods {
			if row := fmt.Sprintf("| %s `%s` |", strings.ToUpper(method), strings.TrimPrefix(path, "/api/v1")); !strings.Contains(text, row) {
				t.Errorf("the table has no row %s", row)
			}
		}
	}
}

func TestTheREADMEListsEveryAnswerOfTheProxy(t *testing.T) {
	t.Parallel()
	text := section(t, readDocument(t, "README.md"), "Answers of the proxy")
	answers := regexp.MustCompile(`&refusal\{(\d+), "([a-z-]+)", "([^"]+)"`).FindAllStringSubmatch(readDocument(t, "proxy/reply.go"), -1)
	if len(answers) == 0 {
		t.Fatal("proxy/reply.go has no answers")
	}
	for _, a := range answers {
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| %s \\| `%s` \\| .*%s", a[1], a[2], regexp.QuoteMeta(strings.TrimSpace(a[3]))))
		if !row.MatchString(text) {
			t.Errorf("the table has no row for %s %s %q", a[1], a[2], a[3])
		}
	}
	for _, r := range []policy.Reason{policy.NoRule, policy.MethodDenied, policy.MTLSRequired} {
		if !strings.Contains(text, "| 403 | `"+string(r)+"` |") {
			t.Errorf("the table has no row for 403 %s", r)
		}
	}
}

func TestTheArchitectureNamesEveryPackage(t *testing.T) {
	t.Parallel()
	text := readDocument(t, "ARCHITECTURE.md")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		pkg, relErr := filepath.Rel(root, path)
		if pkg != "." && len(files) > 0 && !strings.Contains(text, "`"+filepath.ToSlash(pkg)+"`") {
			t.Errorf("the map of packages lacks %s", pkg)
		}
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
}
