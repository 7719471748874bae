package store

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// The history has two classes, each with a bound of its own: were there one,
// proxies that come and go would push out what operators did.
const (
	operators = "operators"
	proxies   = "proxies"
)

// change is a difference with what a rollback needs besides.
type change struct {
	policy.Difference
	Place  place // of what was before
	Leased bool  // what was before was a proxy's, which brings it back itself
	File   bool  // what was before was the mesh file's, which is the one to bring it back
	// Base is what the settings were before without those of the mesh file; nil
	// where there was no file.
	Base     *policy.Settings
	revision int64 // where it was read
}

// storedChange is a change as stored. It does not embed, since Difference reads
// its JSON itself.
type storedChange struct {
	Difference policy.Difference `json:"difference"`
	Place      place             `json:"place"`
	Leased     bool              `json:"leased,omitempty"`
	File       bool              `json:"file,omitempty"`
	Base       *policy.Settings  `json:"base,omitempty"`
}

// logRecord is what a list of the history shows of one change. Its revision is
// the key's own.
type logRecord struct {
	policy.Revision
	Bytes int `json:"bytes"` // of its differences as stored
}

type authorKey struct{}

// WithAuthor says who makes the changes that are made with the context. Without
// it, it is the operator.
func WithAuthor(ctx context.Context, a policy.Author) context.Context {
	return context.WithValue(ctx, authorKey{}, a)
}

func author(ctx context.Context) policy.Author {
	a, ok := ctx.Value(authorKey{}).(policy.Author)
	if !ok {
		a.Who = policy.ByAdmin
	}
	return a
}

// noteOps gives the operations that note changes in the history. They belong
// into the transaction that makes the changes.
func (s *Store) noteOps(ctx context.Context, changes []change, class string) ([]clientv3.Op, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	now := s.cfg.Now()
	rev := policy.Revision{Time: float64(now.UnixMilli()) / 1000, Author: author(ctx)}
	list := make([]storedChange, len(changes))
	for i, c := range changes {
		rev.Changes = append(rev.Changes, c.Difference)
		list[i] = storedChange{c.Difference, c.Place, c.Leased, c.File, c.Base}
	}
	packed, err := pack(list)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	// The revision, which is the order, is not known yet. The time is near it,
	// and the rest tells processes apart.
	name := fmt.Sprintf("/%016x-%s", now.UnixNano(), s.cfg.NewID())
	op, err := put(s.keys.log(class)+name, logRecord{rev.Summary(), len(packed)})
	return []clientv3.Op{op, clientv3.OpPut(s.keys.diff(class)+name, string(packed))}, err
}

// packedFrom is the size from which differences are compressed: a compressor
// costs a megabyte of memory for a moment.
const packedFrom = 16 << 10

func pack(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil || len(text) < packedFrom {
		return text, err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func unpack(b []byte) (out []storedChange, err error) {
	if bytes.HasPrefix(b, []byte("[")) {
		err = json.Unmarshal(b, &out)
		return out, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z) // ours: at most what one transaction took
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	return out, err
}

// History lists the newest changes before a revision, the newest first and at
// most limit of them, without values; before 0 is all. What was done to the
// endpoints of proxies is among them, that they expired or became healthy is not.
func (s *Store) History(ctx context.Context, before int64, limit int) ([]policy.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	out := []policy.Revision{}
	for _, class := range []string{operators, proxies} {
		opts := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(int64(limit))}
		if before > 0 {
			opts = append(opts, clientv3.WithMaxModRev(before-1))
		}
		resp, err := s.client.Get(ctx, s.keys.log(class)+"/", opts...)
		if err != nil {
			return nil, fmt.Errorf("history: %w", explain(err))
		}
		for _, kv := range resp.Kvs {
			var r logRecord
			if err := json.Unmarshal(kv.Value, &r); err != nil {
				return nil, fmt.Errorf("history: revision %d: %w", kv.ModRevision, err)
			}
			r.Revision.Revision = kv.ModRevision
			out = append(out, r.Revision)
		}
	}
	slices.SortFunc(out, func(a, b policy.Revision) int { return cmp.Compare(b.Revision, a.Revision) })
	return out[:min(limit, len(out))], nil
}

// Revision gives one change with its values. ErrNotFound when there is none of
// that revision, ErrForgotten when there may have been.
func (s *Store) Revision(ctx context.Context, revision int64) (policy.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	fail := func(err error) (policy.Revision, error) {
		return policy.Revision{}, fmt.Errorf("history: revision %d: %w", revision, err)
	}
	for _, class := range []string{operators, proxies} {
		resp, err := s.client.Get(ctx, s.keys.log(class)+"/", clientv3.WithPrefix(), clientv3.WithMinModRev(revision), clientv3.WithMaxModRev(revision))
		if err != nil {
			return fail(explain(err))
		}
		if len(resp.Kvs) == 0 {
			continue
		}
		var r logRecord
		if err := json.Unmarshal(resp.Kvs[0].Value, &r); err != nil {
			return fail(err)
		}
		list, err := s.differences(ctx, class, resp.Kvs)
		if err != nil {
			return fail(err)
		}
		r.Revision.Revision, r.Changes = revision, nil
		for _, c := range list {
			r.Changes = append(r.Changes, c.Difference)
		}
		return r.Revision, nil
	}
	if err := s.reaches(ctx, revision); err != nil {
		return fail(err)
	}
	return fail(fmt.Errorf("no change has it: %w", ErrNotFound))
}

// reaches gives ErrForgotten when the history does not reach back to a revision.
func (s *Store) reaches(ctx context.Context, revision int64) error {
	value, _, err := s.get(ctx, s.keys.forgotten())
	if err != nil {
		return err
	}
	if forgotten, _ := strconv.ParseInt(string(value), 10, 64); revision <= forgotten {
		return fmt.Errorf("%w: it begins after revision %d", ErrForgotten, forgotten)
	}
	return nil
}

// since reads the changes of operators after a revision, in order. ErrForgotten
// when there were others. The condition holds as long as there is none more.
func (s *Store) since(ctx context.Context, revision int64) (changes []change, noneMore clientv3.Cmp, err error) {
	resp, err := s.client.Get(ctx, s.keys.log(operators)+"/", clientv3.WithPrefix(), clientv3.WithMinModRev(revision+1),
		clientv3.WithKeysOnly(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend))
	if err != nil {
		return nil, noneMore, explain(err)
	}
	if changes, err = s.differences(ctx, operators, resp.Kvs); err != nil {
		return nil, noneMore, err
	}
	noneMore = clientv3.Compare(clientv3.ModRevision(s.keys.log(operators)+"/"), "<", resp.Header.Revision+1).WithPrefix()
	return changes, noneMore, s.reaches(ctx, revision+1) // now, since some may have been removed meanwhile
}

// Between tells what differs between the states after two revisions in what
// operators change; 0 as the second is now. The errors are as for Rollback.
func (s *Store) Between(ctx context.Context, from, to int64) ([]policy.Difference, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	backwards := to > 0 && to < from
	if backwards {
		from, to = to, from
	}
	changes, _, err := s.since(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("from revision %d: %w", from, err)
	}
	at := map[policy.Ref]int{}
	var out []policy.Difference
	for _, c := range changes {
		if to > 0 && c.revision > to {
			break
		}
		if i, again := at[c.Ref]; again {
			out[i].After = c.After
			continue
		}
		at[c.Ref] = len(out)
		out = append(out, c.Difference)
	}
	for i, d := range out {
		if backwards {
			d.Before, d.After = d.After, d.Before
		}
		out[i] = policy.Compare(d.Ref, d.Before, d.After)
	}
	return slices.DeleteFunc(out, func(d policy.Difference) bool { return d.Action == policy.Unchanged }), nil
}

// differences reads what belongs to records of the log, in their order.
func (s *Store) differences(ctx context.Context, class string, records []*mvccpb.KeyValue) ([]change, error) {
	keys := make([]string, len(records))
	for i, kv := range records {
		keys[i] = strings.Replace(string(kv.Key), s.keys.log(class), s.keys.diff(class), 1)
	}
	kvs, err := s.getAll(ctx, keys)
	if err != nil {
		return nil, err
	}
	var out []change
	for i, key := range keys {
		if kvs[key] == nil {
			return nil, fmt.Errorf("%w: revision %d was removed just now", ErrForgotten, records[i].ModRevision)
		}
		list, err := unpack(kvs[key].Value)
		if err != nil {
			return nil, fmt.Errorf("history: revision %d: %w", records[i].ModRevision, err)
		}
		for _, c := range list {
			out = append(out, change{c.Difference, c.Place, c.Leased, c.File, c.Base, records[i].ModRevision})
		}
	}
	return out, nil
}
