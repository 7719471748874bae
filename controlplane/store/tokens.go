package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// tokenRecord is a join token as stored, under a lease: it goes by itself some
// time after its token has expired.
type tokenRecord struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Created   int64  `json:"created"` // Unix seconds, as are the others
	Expires   int64  `json:"expires"`
	Uses      int    `json:"uses,omitempty"`
	Used      int    `json:"used,omitempty"`
	Revoked   int64  `json:"revoked,omitempty"`
}

// tokenKept is how much longer than the token its record is kept: etcd's clock
// may be ahead of ours.
const tokenKept = 10 * time.Minute

// AddToken keeps what is to be known of a new join token. Used and Revoked are
// taken to be zero.
func (s *Store) AddToken(ctx context.Context, t policy.JoinToken) error {
	what := "join token " + t.ID
	if !validID(t.ID) {
		return fmt.Errorf("%s: the id cannot be kept", what)
	}
	return s.write(ctx, what, func(ctx context.Context) error {
		if err := s.server.space(); err != nil {
			return err
		}
		kept := t.Expires.Sub(s.cfg.Now()) + tokenKept
		lease, err := s.client.Grant(ctx, int64(kept/time.Second)+1)
		if err != nil {
			return explain(err)
		}
		r := tokenRecord{Namespace: t.Service.Namespace, Service: t.Service.Name, Created: t.Created.Unix(), Expires: t.Expires.Unix(), Uses: t.Uses}
		op, err := put(s.keys.token(t.ID), r, clientv3.WithLease(lease.ID))
		if err != nil {
			return err
		}
		resp, err := s.client.Txn(ctx).If(absent(s.keys.token(t.ID))).Then(op).Commit()
		if err == nil && !resp.Succeeded {
			return policy.ErrExists
		}
		return explain(err)
	})
}

// Tokens lists the join tokens that have not expired, the oldest first.
func (s *Store) Tokens(ctx context.Context) ([]policy.JoinToken, error) {
	if s.isClosed() {
		return nil, fmt.Errorf("join tokens: %w", ErrClosed)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	prefix := s.keys.token("")
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("join tokens: %w", explain(err))
	}
	out := make([]policy.JoinToken, 0, len(resp.Kvs))
	now := s.cfg.Now()
	for _, kv := range resp.Kvs {
		t, err := readToken(string(kv.Key[len(prefix):]), kv)
		if err != nil {
			return nil, fmt.Errorf("join tokens: %w", err)
		}
		if now.Before(t.Expires) {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b policy.JoinToken) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// UseToken counts a use of a join token and gives what is known of it; joined
// is false where it was not counted because the token is revoked or its uses are
// used up. by names who uses it: a second use by the same, whose first answer may
// have been lost, is not counted again. A token for any number of uses is only
// read. ErrNotFound when nothing is known of the token.
func (s *Store) UseToken(ctx context.Context, id, by string) (t policy.JoinToken, joined bool, err error) {
	if !validID(id) || !validID(by) {
		return t, false, fmt.Errorf("join token: %w", ErrNotFound)
	}
	err = s.write(ctx, "join token "+id, func(ctx context.Context) error {
		kvs, err := s.getAll(ctx, []string{s.keys.token(id), s.keys.tokenUse(id, by)})
		if err != nil {
			return err
		}
		kv := kvs[s.keys.token(id)]
		if kv == nil {
			return ErrNotFound
		}
		if t, err = readToken(id, kv); err != nil {
			return err
		}
		again := kvs[s.keys.tokenUse(id, by)] != nil
		joined = t.Revoked.IsZero() && (t.Uses == 0 || again || t.Used < t.Uses)
		if !joined || t.Uses == 0 || again {
			return nil
		}
		t.Used++
		return s.replaceToken(ctx, kv, func(r *tokenRecord) { r.Used = t.Used }, clientv3.OpPut(s.keys.tokenUse(id, by), "", clientv3.WithLease(clientv3.LeaseID(kv.Lease))))
	})
	return t, joined && err == nil, err
}

// RevokeToken has a join token refused from now on. ErrNotFound when nothing is
// known of it.
func (s *Store) RevokeToken(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("join token: %w", ErrNotFound)
	}
	return s.write(ctx, "join token "+id, func(ctx context.Context) error {
		resp, err := s.client.Get(ctx, s.keys.token(id))
		switch {
		case err != nil:
			return explain(err)
		case len(resp.Kvs) == 0:
			return ErrNotFound
		}
		return s.replaceToken(ctx, resp.Kvs[0], func(r *tokenRecord) {
			if r.Revoked == 0 {
				r.Revoked = s.cfg.Now().Unix()
			}
		})
	})
}

// replaceToken changes a record, if it is still the one that was read.
func (s *Store) replaceToken(ctx context.Context, kv *mvccpb.KeyValue, change func(*tokenRecord), more ...clientv3.Op) error {
	r, err := decode[tokenRecord](kv)
	if err != nil {
		return err
	}
	change(&r)
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	key := string(kv.Key)
	ops := append([]clientv3.Op{clientv3.OpPut(key, string(value), clientv3.WithIgnoreLease())}, more...)
	resp, err := s.client.Txn(ctx).If(unchanged(key, kv.ModRevision)).Then(ops...).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrNotFound // it has just ended
	case err != nil:
		return explain(err)
	case !resp.Succeeded:
		return errRace
	}
	return nil
}

func readToken(id string, kv *mvccpb.KeyValue) (policy.JoinToken, error) {
	r, err := decode[tokenRecord](kv)
	if err != nil {
		return policy.JoinToken{}, fmt.Errorf("the record of the join token %s cannot be read: %w", id, err)
	}
	t := policy.JoinToken{
		ID: id, Service: policy.ServiceName{Namespace: r.Namespace, Name: r.Service},
		Created: time.Unix(r.Created, 0), Expires: time.Unix(r.Expires, 0), Uses: r.Uses, Used: r.Used,
	}
	if r.Revoked != 0 {
		t.Revoked = time.Unix(r.Revoked, 0)
	}
	return t, nil
}
