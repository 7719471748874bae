package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// UpdateSettings lays a JSON object over the mesh's settings. What another
// writes at the same time is kept too: the patch is laid over the newest. The
// error is that of policy.Settings.Merge when the patch is refused, and ErrOwned
// when it sets what the mesh file sets.
func (s *Store) UpdateSettings(ctx context.Context, patch []byte) error {
	// What is wrong whatever is stored needs no etcd to say.
	if _, err := s.State().Settings.Merge(patch); err != nil {
		return err
	}
	return s.changeOne(ctx, policy.Edit{Ref: policy.Ref{Kind: policy.KindConfig}, Patch: patch})
}

// GetOrCreate gives the secret kept under a key. When there is none it keeps
// what make gives; should two do so at once, both get what the first one made.
// In an external cluster secrets are as safe as that cluster.
func (s *Store) GetOrCreate(ctx context.Context, key string, make func() ([]byte, error)) (value []byte, err error) {
	path := s.keys.secret(key)
	err = s.write(ctx, "secret "+key, func(ctx context.Context) error {
		var revision int64
		if value, revision, err = s.get(ctx, path); err != nil || revision != 0 {
			return err
		}
		if err := s.server.space(); err != nil {
			return err
		}
		made, err := make()
		if err != nil {
			return err
		}
		resp, err := s.client.Txn(ctx).If(absent(path)).Then(clientv3.OpPut(path, string(made))).Commit()
		switch {
		case err != nil:
			return explain(err)
		case !resp.Succeeded:
			return errRace
		}
		value = made
		return nil
	})
	return value, err
}

// Get gives the secret kept under a key, nil where there is none.
func (s *Store) Get(ctx context.Context, key string) (value []byte, err error) {
	err = s.write(ctx, "secret "+key, func(ctx context.Context) error {
		value, _, err = s.get(ctx, s.keys.secret(key))
		return err
	})
	return value, err
}
