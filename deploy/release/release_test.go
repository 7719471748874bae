package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/licenseclassifier/v2/assets"
)

const root = "../.."

func all(t *testing.T) []*module {
	t.Helper()
	modules, err := linked(t.Context(), root)
	if err == nil {
		err = classify(modules)
	}
	if err != nil {
		t.Fatal(err)
	}
	return modules
}

func text(t *testing.T, license, file string) map[string][]byte {
	t.Helper()
	b, err := assets.ReadLicenseFile("License/" + license + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"LICENSE": b}
}

func TestALicenceThatIsNotAllowedIsRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		texts map[string][]byte
		want  string
	}{
		{"MIT", text(t, "MIT", "pristine.txt"), ""},
		{"GPL", text(t, "GPL-3.0", "license.txt"), "m v1 is under GPL-3.0, which is not allowed"},
		{"AGPL", text(t, "AGPL-3.0", "license.txt"), "AGPL-3.0, which is not allowed"},
		{"BSL", map[string][]byte{"LICENSE": []byte("Business Source License 1.1\n\nLicensor: somebody\n")}, "m v1: no licence is known"},
		{"both", map[string][]byte{"LICENSE": text(t, "MIT", "pristine.txt")["LICENSE"], "part/LICENSE": text(t, "GPL-2.0", "license.txt")["LICENSE"]}, "GPL-2.0, which is not allowed"},
		{"none", nil, "no licence is known by its texts (0 files)"},
	} {
		m := []*module{{Path: "m", Version: "v1", Texts: c.texts}}
		if err := classify(m); err != nil {
			t.Fatal(err)
		}
		err := check(m, []string{"MIT", "Apache-2.0"})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestWhatWeirLinksIsAllowed(t *testing.T) {
	allowed, err := readAllowed("licenses.allow")
	if err == nil {
		err = check(all(t), allowed)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestTheBillOfMaterialsIsWhatIsLinked compares it with what a program says of
// itself, and wants the same bytes twice.
func TestTheBillOfMaterialsIsWhatIsLinked(t *testing.T) {
	modules := all(t)
	dir := t.TempDir()
	var files [2][]byte
	for i := range files {
		path := filepath.Join(dir, "sbom.json")
		err := writeSBOM(t.Context(), path, root, "v0.0.1-test", modules)
		if err == nil {
			files[i], err = os.ReadFile(path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("the same sources gave other bytes")
	}
	program := filepath.Join(dir, "weir-proxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "grpcnotrace", "-o", program, "./cmd/weir-proxy")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := 0
	for line := range strings.Lines(string(out)) {
		w := strings.Fields(line)
		if len(w) != 4 || w[0] != "dep" {
			continue
		}
		linked++
		if want := `"purl": "pkg:golang/` + w[1] + "@" + w[2] + `"`; !bytes.Contains(files[0], []byte(want)) {
			t.Errorf("%s is linked, and the bill has no %s", w[1], want)
		}
	}
	if linked < 10 {
		t.Errorf("%d modules in the program:\n%s", linked, out)
	}
	for _, want := range []string{`"purl": "pkg:golang/std@`, `"ref": "pkg:golang/github.com/weir-mesh/weir@v0.0.1-test"`} {
		if !bytes.Contains(files[0], []byte(want)) {
			t.Errorf("the bill has no %s", want)
		}
	}
}

// database is a vulnerability database in the format of vuln.go.dev, with one
// entry at most.
func database(t *testing.T, entry string) (url string) {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`, "index/modules.json": `[]`, "index/vulns.json": `[]`,
	}
	if entry != "" {
		files["index/modules.json"] = `[{"path":"golang.org/x/sys","vulns":[{"id":"GO-2026-0001","modified":"2026-01-01T00:00:00Z"}]}]`
		files["index/vulns.json"] = `[{"id":"GO-2026-0001","modified":"2026-01-01T00:00:00Z"}]`
		files["ID/GO-2026-0001.json"] = entry
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return "file://" + dir
}

// TestVulncheckFailsByWhatItFinds, and where it could not look says so and does
// not pass for having looked. Packages are scanned, not calls: that takes seconds.
func TestVulncheckFailsByWhatItFinds(t *testing.T) {
	const finding = `{"schema_version":"1.3.1","id":"GO-2026-0001","modified":"2026-01-01T00:00:00Z","published":"2026-01-01T00:00:00Z",
		"summary":"a made-up weakness","details":"a made-up weakness","affected":[{"package":{"name":"golang.org/x/sys","ecosystem":"Go"},
		"ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}],"ecosystem_specific":{"imports":[{"path":"golang.org/x/sys/unix"}]}}]}`
	for _, c := range []struct {
		name, db string
		args     []string
		status   int
		says     string
	}{
		{"nothing known", database(t, ""), nil, 0, "No vulnerabilities found"},
		{"a finding", database(t, finding), nil, 1, "GO-2026-0001"},
		{"a finding, and offline allowed", database(t, finding), []string{"--may-be-offline"}, 1, "GO-2026-0001"},
		{"out of reach", "http://127.0.0.1:1", nil, 1, "NOT CHECKED"},
		{"out of reach, and allowed", "http://127.0.0.1:1", []string{"--may-be-offline"}, 0, "NOT CHECKED"},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, ".ci/vulncheck"), c.args...)
		cmd.Env = append(os.Environ(), "GOVULNDB="+c.db, "VULNSCAN=package")
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != c.status || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: status %d, want %d and %q:\n%s", c.name, cmd.ProcessState.ExitCode(), c.status, c.says, out)
		}
	}
}
