package meshfile

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// disk is a directory whose files change between two looks.
type disk map[string]string

func (d disk) read(path string) ([]byte, error) {
	if text, ok := d[path]; ok {
		return []byte(text), nil
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
}

const small = "mesh:\n  egress: deny\n"

// looks has a follower look so often, and gives what it told as text.
func looks(f *Follower, times int) string {
	var out []string
	for range times {
		file, err := f.look()
		switch {
		case err != nil:
			out = append(out, err.Error())
		case file != nil:
			out = append(out, string(file.Settings))
		default:
			out = append(out, "-")
		}
	}
	return strings.Join(out, " | ")
}

func following(d disk) *Follower {
	now := reading{data: []byte(d["/f"])}
	return &Follower{path: "/f", read: d.read, last: now, before: now}
}

func TestAChangeIsTakenWhenItHasSettled(t *testing.T) {
	d := disk{"/f": small}
	f := following(d)
	step := func(text, want string, times int) {
		t.Helper()
		d["/f"] = text
		if got := looks(f, times); got != want {
			t.Errorf("after %q: %s, want %s", text, got, want)
		}
	}
	step(small, "- | -", 2)
	// An editor that truncates and then writes in two parts, of which the first is
	// a valid file already.
	step("", "-", 1)
	step("mesh:\n", "-", 1)
	step("mesh:\n  egress: allow\n", "-", 1)
	step("mesh:\n  egress: allow\n  default_policy: deny\n", `- | {"default_policy":"deny","egress":"allow"} | - | -`, 4)
	step("mesh: [\n", `- | /f:1:7: sequence end token ']' not found | -`, 3)
	step(small, `- | {"egress":"deny"} | -`, 3)
	delete(d, "/f")
	if got := looks(f, 3); got != "- | open /f: file does not exist | -" {
		t.Errorf("removed: %s", got)
	}
	step(small, `- | {"egress":"deny"} | -`, 3)
}

func TestACertificateThatComesLaterIsFound(t *testing.T) {
	cert, key := certificatePEM(t)
	d := disk{"/f": small}
	f := following(d)
	d["/f"] = "mesh:\n  security:\n    ssl: {enabled: true, cert_file: c.pem, key_file: /k.pem}\n"
	if got := looks(f, 3); got != "- | /f:3:26: mesh.security.ssl.cert_file: /c.pem: file does not exist\n/f:3:44: mesh.security.ssl.key_file: /k.pem: file does not exist | -" {
		t.Errorf("%s", got)
	}
	d["/c.pem"], d["/k.pem"] = cert, cert
	if got := looks(f, 1); got != "-" {
		t.Errorf("with a wrong key: %s", got)
	}
	d["/k.pem"] = key
	if got := looks(f, 2); !strings.HasPrefix(got, `{"security":{"ssl":`) || !strings.HasSuffix(got, " | -") {
		t.Errorf("with its key: %s", got)
	}
}

func TestACertificateAndAKeyThatDoNotFitAreRefused(t *testing.T) {
	cert, _ := certificatePEM(t)
	_, other := certificatePEM(t)
	f, err := Parse("f", []byte("mesh:\n  security:\n    ssl: {enabled: true, cert_file: c, key_file: k}\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = f.CheckFiles("/", disk{"/c": cert, "/k": other}.read)
	if err == nil || !strings.Contains(err.Error(), "f:3:26: mesh.security.ssl.cert_file: certificate c and key k: tls: private key does not match public key") {
		t.Errorf("%v", err)
	}
}

// On a real disk: what editors, renames and a Kubernetes ConfigMap do.
func TestAFileOnDiskIsFollowed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "1"), 0o700))
	must(os.Mkdir(filepath.Join(dir, "2"), 0o700))
	write("1/mesh.yml", small)
	write("2/mesh.yml", "mesh:\n  egress: allow\n")
	must(os.Symlink("1", filepath.Join(dir, "..data")))
	must(os.Symlink("..data/mesh.yml", filepath.Join(dir, "mesh.yml")))
	f, file, err := NewFollower(filepath.Join(dir, "mesh.yml"))
	must(err)
	if string(file.Settings) != `{"egress":"deny"}` {
		t.Fatalf("%s", file.Settings)
	}
	must(os.Symlink("2", filepath.Join(dir, "..new")))
	must(os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
	if got := looks(f, 3); got != `- | {"egress":"allow"} | -` {
		t.Errorf("a link that was swapped: %s", got)
	}
	write("new", "mesh:\n  mtls_mode: permissive\n")
	must(os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "mesh.yml")))
	if got := looks(f, 3); got != `- | {"mtls_mode":"permissive"} | -` {
		t.Errorf("a rename: %s", got)
	}
	write("mesh.yml", "mesh: {}\n")
	if got := looks(f, 3); got != `- | {} | -` {
		t.Errorf("a write in place: %s", got)
	}
}

func TestAFileThatCannotBeReadIsNoStart(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := NewFollower(filepath.Join(dir, "gone.yml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, _, err := NewFollower(dir); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("%v", err)
	}
}

func TestRunTellsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text atomic.Value
		text.Store(small)
		f := following(disk{"/f": small})
		f.read = func(string) ([]byte, error) { return []byte(text.Load().(string)), nil }
		ctx, cancel := context.WithCancel(t.Context())
		var told []string
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Run(ctx, func(f *File, err error) { told = append(told, fmt.Sprint(f != nil, err)) })
		}()
		time.Sleep(10 * time.Second)
		text.Store("mesh: {}\n")
		time.Sleep(3 * lookEvery)
		cancel()
		<-ended
		if fmt.Sprint(told) != "[true <nil>]" {
			t.Errorf("%v", told)
		}
	})
}

func certificatePEM(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	der8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der8}))
}
