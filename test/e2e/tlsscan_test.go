//go:build tlsscan

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// finding is a line of testssl.sh's report.
type finding struct {
	ID       string `json:"id"`
	Severity string `json:"severity"`
	Finding  string `json:"finding"`
}

// expected are findings above INFO that are so by design.
var expected = map[string]string{
	"cert_expirationStatus": "certificates hold a day and are renewed at half of it",
	"cert_notAfter":         "certificates hold a day and are renewed at half of it",
	"cert_revocation":       "certificates hold a day; there is no CRL and no OCSP",
	"cert_chain_of_trust":   "the root is the mesh's own, which proxies and clients are given, and no store has",
	"engine_problem":        "of the scanner's own openssl: no GOST",
	"service":               "the scanner does not know the protocol (HTTP/2 with gRPC)",
	"security_headers":      "an API, no page in a browser: see docs/SECURITY.md",
	"HSTS":                  "an API, no page in a browser: there is no plain HTTP to come from",
}

// TestTLSScan is `make tls-scan`: openssl's tries of all ports, and testssl.sh
// against those that need no ALPN of ours. It fails on anything weak, and
// writes the report to WEIR_TLS_REPORT.
func TestTLSScan(t *testing.T) {
	t.Parallel()
	m, outside, ports := tlsPorts(t)
	var report strings.Builder
	version, _ := outside.Output(t.Context(), "sh", "-c", "testssl -v 2>/dev/null | grep -om1 'testssl  *[0-9][^ ]*' | tr -s ' '; openssl version | cut -d' ' -f1,2")
	weir, _ := outside.Output(t.Context(), m.Program("weir"), "version")
	fmt.Fprintf(&report, "# What is offered where weir speaks TLS\n\nWritten by `make tls-scan` on %s, with %s; %s. All ports of a mesh in namespaces were asked.\n",
		time.Now().UTC().Format(time.DateOnly), strings.Join(strings.Split(strings.TrimSpace(version), "\n"), " and "), strings.TrimSpace(weir))
	fmt.Fprintf(&report, "\n## Tried one by one, with openssl\n\nThe proxy's port speaks the mesh's TLS to who asks for ALPN `weir`, which testssl.sh cannot. "+
		"What openssl thinks too weak to offer was allowed to it (`@SECLEVEL=0`).\n\n| offered |")
	for _, p := range ports {
		fmt.Fprintf(&report, " %s |", p.name)
	}
	report.WriteString("\n|---|" + strings.Repeat("---|", len(ports)) + "\n")
	for _, c := range tlsCases {
		fmt.Fprintf(&report, "| %s |", c.what)
		for _, p := range ports {
			agreed, said := p.handshake(t.Context(), outside, c.args...)
			if (agreed != "") != c.taken {
				t.Errorf("%s, %s: agreed on %q\n%s", p.name, c.what, agreed, said)
			}
			if agreed == "" {
				agreed = "refused"
			}
			fmt.Fprintf(&report, " %s |", agreed)
		}
		report.WriteString("\n")
	}
	for _, p := range ports[1:] {
		fmt.Fprintf(&report, "\n## testssl.sh: %s\n\n| check | severity | finding |\n|---|---|---|\n", p.name)
		for _, f := range testssl(t, outside.Path(), p) {
			note := ""
			if !slices.Contains([]string{"OK", "INFO", "DEBUG"}, f.Severity) {
				reason, ok := expected[f.ID]
				if !ok {
					t.Errorf("%s: %s %s: %s", p.name, f.Severity, f.ID, f.Finding)
					reason = "**weak**"
				}
				note = " (" + reason + ")"
			}
			fmt.Fprintf(&report, "| %s | %s | %s%s |\n", f.ID, f.Severity, strings.ReplaceAll(f.Finding, "|", "/"), note)
		}
	}
	if file := os.Getenv("WEIR_TLS_REPORT"); file != "" {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(report.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// testssl scans a port for protocols, ciphers, forward secrecy, its certificate
// and the known weaknesses.
func testssl(t *testing.T, netns string, p tlsPort) []finding {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), "nsenter", "--net="+netns, "testssl", "--nodns", "none", "--color", "0", "--warnings", "off", "--quiet",
		"--jsonfile", file, "-p", "-s", "-f", "-P", "-S", "-U", p.addr)
	out, err := cmd.CombinedOutput() // its status counts findings, which are read below
	b, rerr := os.ReadFile(file)
	var all []finding
	if rerr == nil {
		rerr = json.Unmarshal(b, &all)
	}
	if rerr != nil || len(all) < 30 {
		t.Fatalf("testssl of %s: %v, %v, %d findings\n%s", p.name, err, rerr, len(all), out)
	}
	for _, must := range []string{"TLS1_3", "heartbleed", "cert_keySize"} {
		if !slices.ContainsFunc(all, func(f finding) bool { return f.ID == must }) {
			t.Errorf("testssl of %s says nothing of %s", p.name, must)
		}
	}
	// What differs from run to run, or between keys that are not the point.
	return slices.DeleteFunc(all, func(f finding) bool {
		return strings.HasPrefix(f.ID, "cert_fingerprint") || f.ID == "cert_serialNumber" || f.ID == "cert" || f.ID == "scanTime" || f.ID == "TLS_timestamp" ||
			strings.HasPrefix(f.ID, "cert <") || strings.HasPrefix(f.ID, "cert_notBefore") || strings.Contains(f.ID, "cert#")
	})
}
