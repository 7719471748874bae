package feed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weir-mesh/weir/policy/wire"
)

// The state file is a line that says what it is, the SHA-256 of the rest, and a
// DeltaDiscoveryResponse with everything in force; its system_version_info is
// the service whose proxy wrote it. It may hold a JWT secret, hence mode 0600.
const (
	stateMagic = "weir-state 1\n"
	maxState   = 256 << 20 // bytes
	// saveDelay lets many changes go into one write.
	saveDelay = time.Second
)

// saveLoop writes the state file soon after changes.
func (f *Feed) saveLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		}
		more := sleep(ctx, saveDelay)
		f.save()
		if !more {
			return
		}
	}
}

// saveIfChanged writes what saveLoop did not come to.
func (f *Feed) saveIfChanged() {
	select {
	case <-f.changed:
		f.save()
	default:
	}
}

func (f *Feed) save() {
	if f.cfg.StateFile == "" {
		return
	}
	text, err := encodeState(f.snapshot())
	if err == nil {
		err = replaceFile(f.cfg.StateFile, text)
	}
	if err != nil {
		f.cfg.Log.Warn("state is not kept for a restart", zap.String("file", f.cfg.StateFile), zap.Error(err))
	}
}

// snapshot collects what is in force.
func (f *Feed) snapshot() *wire.DeltaDiscoveryResponse {
	out := &wire.DeltaDiscoveryResponse{SystemVersionInfo: f.cfg.Service.String()}
	f.mu.RLock()
	defer f.mu.RUnlock()
	for r, s := range f.subs.all {
		if s.raw == nil {
			continue
		}
		body := &anypb.Any{TypeUrl: typeURLs[r.kind], Value: s.raw}
		version := s.version
		if r.kind == meshKind {
			// The roots are identity's to keep; those of a file could be older than
			// its own. Without a version the mesh is sent again in any case.
			body.Value, version = withoutBundle(s.raw), ""
		}
		out.Resources = append(out.Resources, &wire.Resource{Name: r.name, Version: version, Resource: body})
	}
	slices.SortFunc(out.Resources, func(a, b *wire.Resource) int {
		return cmp.Or(cmp.Compare(a.Resource.TypeUrl, b.Resource.TypeUrl), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func withoutBundle(raw []byte) []byte {
	m := &wire.Mesh{}
	if proto.Unmarshal(raw, m) != nil {
		return raw // cannot be: it was decoded before it came into force
	}
	m.Bundle = nil
	out, err := proto.Marshal(m)
	if err != nil {
		return raw
	}
	return out
}

func encodeState(state *wire.DeltaDiscoveryResponse) ([]byte, error) {
	body, err := proto.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	sum := sha256.Sum256(body)
	return slices.Concat([]byte(stateMagic), sum[:], body), nil
}

func decodeState(text []byte) (*wire.DeltaDiscoveryResponse, error) {
	rest, ok := bytes.CutPrefix(text, []byte(stateMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, errors.New("is not a state file of this version")
	}
	body := rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errors.New("its checksum is wrong")
	}
	state := &wire.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(body, state); err != nil {
		return nil, fmt.Errorf("cannot be decoded: %w", err)
	}
	return state, nil
}

// replaceFile replaces a file as a whole: written aside, synced, renamed.
func replaceFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(aside, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	return nil
}

// load puts the state file in force. What is wrong with it is logged: the proxy
// then waits for the control plane.
func (f *Feed) load() {
	if f.cfg.StateFile == "" {
		return
	}
	text, err := readBounded(f.cfg.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var state *wire.DeltaDiscoveryResponse
	if err == nil {
		state, err = decodeState(text)
	}
	if err == nil && state.GetSystemVersionInfo() != f.cfg.Service.String() {
		err = fmt.Errorf("is of %s", state.GetSystemVersionInfo())
	}
	if err != nil {
		f.cfg.Log.Warn("state file ignored", zap.String("file", f.cfg.StateFile), zap.Error(err))
		return
	}
	f.restore(state)
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxState))
}

func (f *Feed) restore(state *wire.DeltaDiscoveryResponse) {
	f.hooks.Lock()
	defer f.hooks.Unlock()
	taken := 0
	for _, res := range state.GetResources() {
		k, ok := kindOf(res.GetResource().GetTypeUrl())
		if !ok || !f.restorable(resource{k, res.GetName()}) {
			continue
		}
		r := resource{k, res.GetName()}
		if err := f.take(r, res.GetVersion(), res.GetResource()); err != nil {
			f.cfg.Log.Warn("state of the file refused", zap.Stringer("resource", r), zap.Error(err))
			continue
		}
		taken++
	}
	f.mu.Lock()
	f.link.fromFile = taken > 0
	f.mu.Unlock()
	f.checkReady()
	f.cfg.Log.Info("last known state taken from the file", zap.String("file", f.cfg.StateFile), zap.Int("resources", taken))
}

// restorable makes the subscription of a resource of the file.
func (f *Feed) restorable(r resource) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.subs.all[r] != nil {
		return true
	}
	s := &sub{resource: r}
	valid := r.kind == serviceKind && s.service().String() == r.name ||
		r.kind == lookupKind && s.address().Addr().IsValid() && lookupName(s.address()) == r.name
	if valid {
		f.subs.add(r, f.cfg.Now())
	}
	return valid
}
