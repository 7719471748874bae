package ca

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
)

// sealed keeps secrets encrypted in another keeper: AES-256-GCM, with the name of
// the secret bound in, so that one cannot be put in the place of another. The keys
// are of a file; the first seals, all open.
type sealed struct {
	Keeper
	keys []cipher.AEAD // none: what is sealed is refused
	file string
}

// sealedMark is what a sealed value begins with.
var sealedMark = []byte("weir-sealed-1\n")

// Seal gives a keeper that keeps secrets encrypted with the keys in a file: base64 of
// 32 random bytes each, one a line; "" leaves them as they are, and refuses those that
// are encrypted. What is there in the clear, or by another than the first key, is
// encrypted anew when it is read.
func Seal(keep Keeper, file string) (Keeper, error) {
	s := &sealed{Keeper: keep, file: file}
	if file == "" {
		return s, nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("--ca-key-encryption: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("--ca-key-encryption: the mode of %s is %s: others may read the key; chmod 600 it", file, mode)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--ca-key-encryption: %w", err)
	}
	for n, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("--ca-key-encryption: line %d of %s is not base64 of 32 bytes; make one with: openssl rand -base64 32", n+1, file)
		}
		aead, err := newSeal(key)
		if err != nil {
			return nil, fmt.Errorf("--ca-key-encryption: %w", err)
		}
		s.keys = append(s.keys, aead)
	}
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("--ca-key-encryption: %s holds no key; make one with: openssl rand -base64 32", file)
	}
	return s, nil
}

func newSeal(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// GetOrCreate implements Keeper.
func (s *sealed) GetOrCreate(ctx context.Context, key string, make func() ([]byte, error)) ([]byte, error) {
	kept, err := s.Keeper.GetOrCreate(ctx, key, func() ([]byte, error) {
		made, err := make()
		if err != nil || len(s.keys) == 0 {
			return made, err
		}
		return s.seal(key, made), nil
	})
	if err != nil {
		return nil, err
	}
	return s.open(ctx, key, kept)
}

// Get implements Keeper.
func (s *sealed) Get(ctx context.Context, key string) ([]byte, error) {
	kept, err := s.Keeper.Get(ctx, key)
	if err != nil || kept == nil {
		return nil, err
	}
	return s.open(ctx, key, kept)
}

func (s *sealed) seal(key string, value []byte) []byte {
	return append(bytes.Clone(sealedMark), s.keys[0].Seal(nil, nil, value, []byte(key))...)
}

// open gives the value, and seals it anew where it is not by the first key. That
// another was faster is no failure: it did the same.
func (s *sealed) open(ctx context.Context, key string, kept []byte) ([]byte, error) {
	rest, isSealed := bytes.CutPrefix(kept, sealedMark)
	if !isSealed {
		if len(s.keys) == 0 {
			return kept, nil
		}
		return kept, s.again(ctx, key, kept, kept)
	}
	for n, k := range s.keys {
		value, err := k.Open(nil, nil, rest, []byte(key))
		if err != nil {
			continue
		}
		if n > 0 {
			return value, s.again(ctx, key, kept, value)
		}
		return value, nil
	}
	if len(s.keys) == 0 {
		return nil, errors.New("it is encrypted; give the file with the key: --ca-key-encryption")
	}
	return nil, fmt.Errorf("no key in %s (--ca-key-encryption) opens it", s.file)
}

func (s *sealed) again(ctx context.Context, key string, kept, value []byte) error {
	err := s.Replace(ctx, key, kept, s.seal(key, value))
	if err == nil {
		return nil
	}
	if now, gerr := s.Keeper.Get(ctx, key); gerr == nil && !bytes.Equal(now, kept) {
		return nil
	}
	return fmt.Errorf("encrypt it: %w", err)
}
