package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
)

// The cache is one PEM file, so that key, certificate and roots are never of
// different times. Its roots have a type of their own, to be told from the chain.
const (
	cacheName = "identity.pem"
	rootType  = "WEIR TRUSTED ROOT"
	maxCache  = 1 << 20 // bytes
)

// cached gives the certificate of an earlier run, or nil and a line in the log
// that says why not.
func (i *Identity) cached() *held {
	if i.cfg.CacheDir == "" {
		return nil
	}
	path := filepath.Join(i.cfg.CacheDir, cacheName)
	h, err := readCache(path)
	if err == nil {
		err = i.usable(h)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		i.cfg.Log.Warn("cached certificate ignored", zap.String("file", path), zap.Error(err))
		return nil
	}
	return h
}

func (i *Identity) usable(h *held) error {
	if err := h.isFor(i.cfg.Service, i.cfg.Now()); err != nil {
		return err
	}
	// A token that holds and knows none of our roots comes from a control plane
	// that was set up anew: it would not know our certificate.
	if c, err := i.credential(); err == nil && !c.vouchedFor(h.trust.roots) {
		return errors.New("the join token is of another control plane")
	}
	return nil
}

func readCache(path string) (*held, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("its mode is %s: others may know the key", mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCache))
	if err != nil {
		return nil, err
	}
	return parseCache(text)
}

func parseCache(text []byte) (*held, error) {
	var chain, bundle []byte
	var key crypto.Signer
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			signer, ok := k.(crypto.Signer)
			if err != nil || !ok {
				return nil, errors.New("its key cannot be read")
			}
			key = signer
		case "CERTIFICATE":
			chain = append(chain, pem.EncodeToMemory(block)...)
		case rootType:
			block.Type = "CERTIFICATE"
			bundle = append(bundle, pem.EncodeToMemory(block)...)
		}
	}
	if key == nil {
		return nil, errors.New("holds no key")
	}
	certs, err := parseCertificates(chain)
	if err != nil {
		return nil, err
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return nil, err
	}
	return newHeld(chain, bundle, key, id.TrustDomain())
}

func formatCache(h *held) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(h.cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	blocks := []*pem.Block{{Type: "PRIVATE KEY", Bytes: key}}
	for _, c := range h.chain {
		blocks = append(blocks, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	for _, c := range h.trust.roots {
		blocks = append(blocks, &pem.Block{Type: rootType, Bytes: c.Raw})
	}
	for _, b := range blocks {
		if err := pem.Encode(&out, b); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// writeCache replaces the file as a whole: written aside, synced, renamed.
func writeCache(dir string, h *held) error {
	text, err := formatCache(h)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, cacheName)
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// O_EXCL: the key goes into a file that we made, with our mode, or nowhere.
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
