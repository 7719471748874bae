package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/ca"
)

// AdminTokenFile is the name of the file in the data directory that holds the
// token of the REST API.
const AdminTokenFile = "admin.token"

// adminToken reads the token of the API, or makes it at the first start.
func adminToken(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("--data-dir is empty")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("--data-dir: %w", err)
	}
	path := filepath.Join(dir, AdminTokenFile)
	b, err := os.ReadFile(path)
	if err == nil {
		token := strings.TrimSpace(string(b))
		if len(token) < 16 {
			return "", fmt.Errorf("%s holds no usable token (%d characters); remove it and a new one is made", path, len(token))
		}
		return token, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("admin token: %w", err)
	}
	token := rand.Text()
	return token, writeToken(path, token)
}

// writeToken writes aside and renames: a crash leaves no half of a token.
func writeToken(path, token string) error {
	tmp := path + ".new"
	err := os.WriteFile(tmp, []byte(token+"\n"), 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	return nil
}

// sharedToken gives the admin token that all control planes of an etcd cluster
// take: that of the first one. It is kept in the cluster, as the root's key is,
// and copied to the file of this one.
func sharedToken(ctx context.Context, keep ca.Keeper, dir, own string, log *zap.Logger) (string, error) {
	kept, err := keep.GetOrCreate(ctx, "admin-token", func() ([]byte, error) { return []byte(own), nil })
	if err != nil {
		return "", fmt.Errorf("admin token: %w", err)
	}
	token := string(kept)
	if token == own {
		return own, nil
	}
	log.Info("the admin token is that of the other control planes on this store; the file is written anew", zap.String("file", filepath.Join(dir, AdminTokenFile)))
	return token, writeToken(filepath.Join(dir, AdminTokenFile), token)
}
