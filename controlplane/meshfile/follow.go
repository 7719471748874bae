package meshfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// lookEvery is how often a file is read. Its whole content is compared, which
// needs no help of the file system: links that are swapped (as Kubernetes does
// with a ConfigMap), renames, writes in place and network file systems are all
// alike. The price is some 20 µs of CPU twice a second.
const lookEvery = 500 * time.Millisecond

// Load reads a file and the files that it names. The error is Problems, or says
// that the file cannot be read.
func Load(path string) (*File, error) {
	data, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	return Check(path, data)
}

// Check is Parse and CheckFiles.
func Check(path string, data []byte) (*File, error) {
	f, err := Parse(path, data)
	if err == nil {
		err = f.CheckFiles(filepath.Dir(path), readRegular)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// readRegular reads a file within bounds; what is no file is not waited for.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is not a file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// Follower finds out when a file's content has become another.
type Follower struct {
	path string
	read func(path string) ([]byte, error)

	last    reading // what was told
	before  reading // the look before
	waiting *File   // told as refused for want of a file that it names
}

// reading is what one look at a file gave.
type reading struct {
	data []byte
	err  string
}

func (r reading) is(other reading) bool { return r.err == other.err && bytes.Equal(r.data, other.data) }

// NewFollower reads a file for the first time and gives what it holds. The error
// is that of Load.
func NewFollower(path string) (*Follower, *File, error) {
	f := &Follower{path: path, read: readRegular}
	data, err := f.read(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; it must be there, and readable, from the start", err)
	}
	file, err := Check(path, data)
	if err != nil {
		return nil, nil, err
	}
	f.last = reading{data: data}
	f.before = f.last
	return f, file, nil
}

// Run calls changed for each content that is another than the last, with the file
// or with what is wrong with it, until ctx ends. A file that can no longer be read
// is a change too.
func (f *Follower) Run(ctx context.Context, changed func(*File, error)) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if file, err := f.look(); file != nil || err != nil {
			changed(file, err)
		}
	}
}

// look gives nothing while nothing is new. A content counts when two looks have
// found it: who writes in place truncates first, and half a file can be a valid
// one, with half of the services.
func (f *Follower) look() (*File, error) {
	data, err := f.read(f.path)
	now := reading{data: data}
	if err != nil {
		now = reading{err: err.Error()}
	}
	settled := now.is(f.before)
	f.before = now
	switch {
	case !settled:
		return nil, nil
	case now.is(f.last):
		return f.lookAgain(), nil
	}
	f.last, f.waiting = now, nil
	if err != nil {
		return nil, err
	}
	file, err := Parse(f.path, data)
	if err != nil {
		return nil, err
	}
	if err := file.CheckFiles(filepath.Dir(f.path), f.read); err != nil {
		f.waiting = file
		return nil, err
	}
	return file, nil
}

// lookAgain gives the file that was refused, once what it names is there.
func (f *Follower) lookAgain() *File {
	file := f.waiting
	if file == nil || file.CheckFiles(filepath.Dir(f.path), f.read) != nil {
		return nil
	}
	f.waiting = nil
	return file
}
