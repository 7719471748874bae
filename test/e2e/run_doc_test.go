package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// What docs/RUN.md says to do without root is done here, as a user who is nobody.
func TestRunWithoutRootWorksAsWritten(t *testing.T) {
	t.Parallel()
	text := readDocument(t, "docs/RUN.md")
	block := regexp.MustCompile("(?ms)^```\nunshare (.*?)\n(.*?)^```$").FindStringSubmatch(text)
	if block == nil {
		t.Fatal("docs/RUN.md does not say how")
	}
	bin, err := os.MkdirTemp("", "weir-") // everybody gets at it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	for dir, mode := range map[string]os.FileMode{bin: 0o755, filepath.Join(bin, "data"): 0o777} {
		if err := os.MkdirAll(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"weir", "weir-proxy", "weir-init"} {
		program, err := os.ReadFile(filepath.Join(programs(t), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, name), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	script := "set -e\n" + block[2] + `
weir control --data-dir data/control >data/control.log 2>&1 &
export WEIR_TOKEN_FILE=$PWD/data/control/admin.token
until weir get status >/dev/null 2>&1; do sleep 0.1; done
weir run --service one -- sh -c 'echo ran; exit 7' || echo "status $?"
weir run --service one --user 12:34 -- true || echo "status $?"
kill $!; wait $!
`
	cmd := exec.CommandContext(ctx, "unshare", append(strings.Fields(block[1]), "sh", "-c", script)...)
	cmd.Dir, cmd.WaitDelay = bin, 5*time.Second
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if meshlab.OtherUsers() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		plain := exec.CommandContext(ctx, filepath.Join(bin, "weir"), "run", "--service", "one", "--", "true")
		plain.SysProcAttr = cmd.SysProcAttr
		if out, err := plain.CombinedOutput(); exitStatus(err) != 125 || !strings.Contains(string(out), "sudo weir run") {
			t.Errorf("without root and a user namespace: %v\n%s", err, out)
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ran\nstatus 7\n") || !strings.Contains(string(out), "status 126\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTheDocumentsOfRunAreValid(t *testing.T) {
	t.Parallel()
	found := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(readDocument(t, "docs/RUN.md"), -1)
	if len(found) == 0 {
		t.Fatal("docs/RUN.md has no documents")
	}
	for _, m := range found {
		cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), "weir"), "validate", "-f", "-")
		cmd.Stdin = strings.NewReader(m[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, m[1])
		}
	}
}
