package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/test/meshlab"
)

// openssl runs the real one in a directory.
func openssl(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// companyCA makes a root and an authority below it in a directory, by the commands of
// docs/CERTIFICATES.md.
func companyCA(t *testing.T, dir, name string) {
	t.Helper()
	script := certificateExamples(t)["A CA of your own"]
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.ReplaceAll(script, "Example Root", name))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// certificateExamples reads the shell examples of docs/CERTIFICATES.md by the headings
// above them.
func certificateExamples(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/CERTIFICATES.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	heading, inside := "", false
	for line := range strings.Lines(string(text)) {
		switch {
		case !inside && strings.HasPrefix(line, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		case strings.HasPrefix(line, "```"):
			inside = !inside && strings.HasPrefix(line, "```sh")
		case inside:
			out[heading] += line
		}
	}
	return out
}

// A mesh with a root of its own goes over to that of a company, by files, under
// traffic; its keys are encrypted where they are kept.
func TestAMeshGoesOverToACAOfOnesOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	companyCA(t, dir, "Example Root")
	key := filepath.Join(dir, "keys")
	if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &secureMesh{Mesh: start(t, "--ca-key-encryption", key)}
	m.node = bare(t, m.Mesh, "vault")
	m.app = serve(t, m.node, "vault", 8001, nil)
	echoServer(t, m.node, 9001, "")
	enter(t, m.Mesh, m.node, meshlab.Workload{Host: "vault", Service: "vault", Ports: []string{"8001", "9001/tcp"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	s := newSteady(t, m.front, "http://vault:8001/", "vault:9001", 4, 5*time.Millisecond)
	m.Control.Kill()
	files := []string{"--ca-cert", filepath.Join(dir, "issuing.pem"), "--ca-key", filepath.Join(dir, "issuing.key"), "--ca-chain", filepath.Join(dir, "root.pem"), "--ca-key-encryption", key}
	m.SetControl(files...)
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _ := trustedRoots(t, m.Mesh)
	if out := weir(t, m.Mesh, "status"); !strings.Contains(out, "go over to it with: weir ca rotate") {
		t.Errorf("weir status:\n%s", out)
	}
	if out := weir(t, m.Mesh, "ca", "rotate"); !strings.Contains(out, "3 of 3, done") {
		t.Errorf("weir ca rotate:\n%s", out)
	}
	after, signs := trustedRoots(t, m.Mesh)
	if len(after) != 1 || after[0] == before[0] || signs != after[0] {
		t.Errorf("roots %v after %v, %s signs", after, before, signs)
	}
	certs, out := shown(t, bare(t, m.Mesh, "outside"), "-connect", m.node.Join(8001), "-alpn", "weir")
	if len(certs) != 2 || certs[1].Subject.CommonName != "Example Issuing CA" {
		t.Errorf("the proxy shows %d certificates:\n%s", len(certs), out)
	}
	s.check(t, "after going over to the company's root")
	// The next authority below the same root is taken without more; bad files are not.
	old := ca(t, m.Mesh)
	if err := os.WriteFile(filepath.Join(dir, "issuing.pem"), []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the files to be refused", func() error {
		if f := ca(t, m.Mesh).Files; f == nil || f.Refused != 1 || !strings.Contains(f.Problem, "--ca-cert") {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
	if kindOf(ca(t, m.Mesh), api.KindIntermediate) != kindOf(old, api.KindIntermediate) {
		t.Error("another signs after bad files")
	}
	openssl(t, dir, "x509", "-req", "-in", "issuing.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "30", "-extfile", "issuing.cnf", "-out", "issuing.pem")
	await(t, m.Mesh, "the next files to be in force", func() error {
		if now := ca(t, m.Mesh); kindOf(now, api.KindIntermediate) == kindOf(old, api.KindIntermediate) || now.Files.Problem != "" {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	s.check(t, "after the files changed")
	join(t, m.Mesh, meshlab.Workload{Host: "late", Service: "late"})
}

func ca(t *testing.T, m *meshlab.Mesh) api.CA {
	t.Helper()
	out, err := m.API.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kindOf is the fingerprint of the first certificate of a kind.
func kindOf(c api.CA, kind string) string {
	for _, x := range c.Certificates {
		if x.Kind == kind {
			return x.SHA256
		}
	}
	return ""
}

// Everything that docs/CERTIFICATES.md shows, as it shows it.
func TestTheExamplesOfCertificatesMD(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	for _, c := range []struct{ heading, shows string }{
		{"What there is", "signs, trusted"},
		{"Rotating the root", "3 of 3, done"},
		{"Revocation", "identity default/frontend"},
		{"Lifting a revocation", "revoked no more"},
		{"When certificates end", `"certificates"`},
	} {
		script := certificateExamples(t)[c.heading]
		if script == "" {
			t.Errorf("no example under %q", c.heading)
			continue
		}
		out, err := m.ControlNode().Output(t.Context(), "env", "PATH="+filepath.Dir(m.Program("weir"))+":"+os.Getenv("PATH"),
			"WEIR_TOKEN_FILE="+m.TokenFile(), "sh", "-ec", script)
		if err != nil || !strings.Contains(out, c.shows) {
			t.Errorf("%s: %v: no %q in\n%s", c.heading, err, c.shows, out)
		}
	}
	if list, err := m.API.Revocations(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("revocations are left: %+v, %v", list, err)
	}
	m.until(t, m.front, 200, "", "http://vault:8001/")
}
