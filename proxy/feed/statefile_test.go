package feed

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weir-mesh/weir/policy/wire"
)

// nowhere is an address at which nothing listens.
func nowhere(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// written runs a feed with a state file until it has some state.
func written(t *testing.T) (path string) {
	t.Helper()
	c := newControl(t)
	at, stop := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80, 81))
	c.set(wire.LookupType, "10.0.0.5:80", &wire.Lookup{Service: wire.FromName(store)})
	path = stateFile(t)
	var a app
	f, end := start(t, &a, []string{at}, func(cfg *Config) { cfg.StateFile = path })
	ready(t, f)
	if !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	if _, ok := f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:80")); !ok {
		t.Fatal("not known")
	}
	f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:99"))
	end()
	stop()
	return path
}

func TestRestartWithoutControlPlane(t *testing.T) {
	path := written(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	var a app
	f, _ := start(t, &a, []string{nowhere(t)}, func(cfg *Config) { cfg.StateFile, cfg.Wait = path, time.Hour })
	ready(t, f)
	if !f.Service(t.Context(), store) || len(a.service(store).Endpoints) != 2 {
		t.Error(a.service(store))
	}
	if n, ok := f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:80")); n != store || !ok {
		t.Error(n, ok)
	}
	if n, ok := f.ServiceAt(t.Context(), netip.AddrPortFrom(a.service(store).Virtual6, 1)); n != store || !ok {
		t.Error(n, ok)
	}
	if a.mesh.TrustDomain != "test.weir" || len(a.mesh.Bundle) != 0 {
		t.Errorf("mesh %+v: roots are not the file's to keep", a.mesh)
	}
	if st := f.Status(); !st.FromFile || st.Connected || st.Lookups != 1 {
		t.Errorf("%+v", st)
	}
}

func TestAfterARestartOnlyWhatDiffersIsSentAndTheMeshWithItsRoots(t *testing.T) {
	path := written(t)
	c := newControl(t)
	c.set(wire.ServiceType, store.String(), service(store, 80, 81))
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.StateFile = path })
	if first := c.request(wire.ServiceType, subscribes(store.String())); first.InitialResourceVersions[store.String()] == "" {
		t.Error("no version:", first)
	}
	a.until(t, "the roots", func() bool { return string(a.mesh.Bundle) == "roots" })
	c.request(wire.MeshType, answers)
	if st := f.Status(); st.FromFile {
		t.Errorf("%+v", st)
	}
	// mesh and inbound and store of the file, then the mesh of the control plane,
	// and the lookup that is gone has no hook.
	if a.calls != 4 {
		t.Errorf("%d hook calls", a.calls)
	}
}

func TestChangesAreWrittenWhileRunning(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	path := stateFile(t)
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.StateFile = path })
	ready(t, f)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(path); err == nil {
			if state, err := decodeState(text); err != nil || len(state.Resources) != 2 {
				t.Error(state, err)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing written")
		}
	}
}

func TestFilesThatAreNotTaken(t *testing.T) {
	good, err := os.ReadFile(written(t))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	other, err := encodeState(&wire.DeltaDiscoveryResponse{SystemVersionInfo: bank.String()})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)/2], "one bit": flipped, "rubbish": bytes.Repeat([]byte("x"), 1000),
		"another version": append([]byte("weir-state 2\n"), good[len(stateMagic):]...), "another service's": other,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			c := newControl(t)
			at, _ := c.serve("", nil)
			core, logs := observer.New(zap.WarnLevel)
			var a app
			f, stop := start(t, &a, []string{at}, func(cfg *Config) { cfg.StateFile, cfg.Log = path, zap.New(core) })
			ready(t, f)
			stop()
			if logs.FilterMessage("state file ignored").Len() != 1 || a.calls != 2 {
				t.Errorf("%d calls, %v", a.calls, logs.All())
			}
			if now, err := os.ReadFile(path); err != nil || bytes.Equal(now, text) {
				t.Error("not replaced", err)
			}
		})
	}
}

func TestAFileThatCannotBeWrittenCostsALineInTheLog(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	var a app
	f, stop := start(t, &a, []string{at}, func(cfg *Config) { cfg.StateFile, cfg.Log = filepath.Join(file, "below"), zap.New(core) })
	ready(t, f)
	stop()
	if logs.FilterMessage("state is not kept for a restart").Len() == 0 {
		t.Error(logs.All())
	}
}

func TestStateOfTheFileThatAHookRefusesIsLeftOut(t *testing.T) {
	path := written(t)
	var a app
	f, err := New(Config{Control: []string{"x"}, ProxyID: "p", Service: own, StateFile: path, Hooks: a.hooks()})
	if err != nil {
		t.Fatal(err)
	}
	a.refuse = errors.New("no")
	f.load()
	select {
	case <-f.Ready():
		t.Error("ready")
	default:
	}
	if f.Service(t.Context(), store) || f.Status().FromFile != true {
		t.Errorf("%+v", f.Status()) // the lookup has no hook
	}
}

// FuzzDecodeState asserts that what is accepted is written back the same, and
// that restoring anything leaves a feed that answers.
func FuzzDecodeState(f *testing.F) {
	raw, err := proto.Marshal(service(store, 80))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, wire.ServiceType, store.String())
	f.Add([]byte{}, wire.LookupType, "10.0.0.5:80")
	f.Add([]byte{}, wire.MeshType, "mesh")
	f.Fuzz(func(t *testing.T, raw []byte, typ, name string) {
		state := &wire.DeltaDiscoveryResponse{SystemVersionInfo: own.String()}
		res := &wire.Resource{}
		if proto.Unmarshal(raw, res) == nil {
			state.Resources = append(state.Resources, res)
		}
		state.Resources = append(state.Resources, &wire.Resource{Name: name, Version: "1", Resource: &anypb.Any{TypeUrl: typ, Value: raw}})
		text, err := encodeState(state)
		if err != nil {
			return // not UTF-8: cannot be encoded, and so not be in a file
		}
		again, err := decodeState(text)
		if err != nil || !proto.Equal(state, again) {
			t.Fatal("not the same after writing:", err)
		}
		var a app
		feed, err := New(Config{Control: []string{"x"}, ProxyID: "p", Service: own, Hooks: a.hooks()})
		if err != nil {
			t.Fatal(err)
		}
		feed.restore(again)
		for n, s := range a.services {
			if !feed.Service(t.Context(), n) || s.Name != n {
				t.Errorf("%s is in force but not known", n)
			}
		}
		for at, s := range feed.subs.addresses {
			if answer := s.answer.Load(); answer != nil && answer.known && at.Addr().IsValid() && answer.service.Validate() != nil {
				t.Errorf("%s is of %v", at, answer.service)
			}
		}
	})
}
