// Package store keeps the mesh's state in etcd, embedded or a cluster, and tells
// what changed. What the state means, who may change it and who is to hear of
// it are left to others.
package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/weir-mesh/weir/policy"
)

// What callers branch on. Errors wrap these.
var (
	// ErrNotFound says that what is to be changed does not exist.
	ErrNotFound = policy.ErrNotFound
	// ErrConflict says that what is to be added exists already.
	ErrConflict = policy.ErrExists
	// ErrOwned says that what is to be changed is kept by the mesh file, and is to
	// be changed there.
	ErrOwned = policy.ErrOwned
	// ErrLocked says that another process uses the data directory.
	ErrLocked = errors.New("the data directory is in use")
	// ErrFull says that there is no room: on the disk, in etcd's quota, or among
	// the virtual addresses. Nothing was stored.
	ErrFull = errors.New("no room left")
	// ErrTooLarge says that a change is more than etcd takes in one transaction.
	// Nothing was stored.
	ErrTooLarge = policy.ErrTooLarge
	// ErrForgotten says that the history does not reach back so far.
	ErrForgotten = policy.ErrForgotten
	// ErrUnavailable says that etcd did not answer in time: a cluster without a
	// majority, or not reachable. Whether a write was stored is not known.
	ErrUnavailable = errors.New("etcd does not answer")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the store is closed")
)

// Config says where the state is kept.
type Config struct {
	// DataDir is the directory of the embedded etcd, and of nothing else; it is
	// made when absent and its mode set to 0700. Only one process may use it.
	// Not used with Endpoints.
	DataDir string
	// Endpoints are the client URLs of an etcd cluster ("http://10.0.0.1:2379").
	// Empty means an embedded single member in DataDir.
	Endpoints []string
	// Access is how the cluster's Endpoints are spoken to; with the zero value
	// https is verified by the system's roots.
	Access Access
	// Prefix is that of every key; "/weir/" when empty. Meshes that share a
	// cluster differ in it.
	Prefix string
	// LeaseTTL is how long what is attached outlives the last KeepAlive; 10 s
	// when zero. etcd takes whole seconds and at least 2.
	LeaseTTL time.Duration
	// Log takes warnings; nil drops them.
	Log *zap.Logger
	// NewID makes the ids of rules that come without one; random when nil.
	NewID func() string
	// Now dates the changes; time.Now when nil.
	Now func() time.Time
	// History is how many changes of operators are remembered, 1000 when 0; of
	// proxies, half as many more.
	History int

	quota        int64 // of the embedded database; 0 is etcd's own. For tests
	historyBytes int64 // 64 MiB when 0. For tests
}

func (c Config) withDefaults() Config {
	c.Prefix = "/" + strings.Trim(cmp.Or(c.Prefix, "weir"), "/") + "/"
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 10*time.Second)
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	c.History, c.historyBytes = cmp.Or(c.History, 1000), cmp.Or(c.historyBytes, historyBytes)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = func() string { return strings.ToLower(rand.Text()[:10]) }
	}
	return c
}

// requestTimeout bounds a request whose context has no earlier deadline. A
// cluster elects a leader in about a second; after ten there is no majority.
const requestTimeout = 10 * time.Second

// embeddedTimeout is requestTimeout for the writes of an embedded etcd.
const embeddedTimeout = time.Minute

// openTimeout bounds the first question to a cluster: who waits for one wants to
// hear why soon.
const openTimeout = 3 * time.Second

// Store is the mesh's state. Its methods may be called by many goroutines.
type Store struct {
	cfg    Config
	keys   keys
	client *clientv3.Client
	server *server     // nil with an external cluster
	last   *connecting // nil with the embedded etcd

	current atomic.Pointer[State]

	relieveMu sync.Mutex    // held while room is made
	turn      chan struct{} // of one place: taken by a writer that lost a race
	allocMu   sync.Mutex    // held while a virtual address is given out
	written   atomic.Int64  // changes noted in the history by this process
	unweighed atomic.Int64  // bytes of those since it was asked how large the history is

	pruneMu  sync.Mutex        // held while the history is cut to its bounds; guards keptFrom
	keptFrom map[string]string // by class, the first key of the history that was kept last

	mu        sync.Mutex // guards what follows
	model     *model
	watches   map[*Watch]struct{}
	waiters   map[*waiter]struct{}
	following bool // Run is at work
	closed    bool

	trouble atomic.Pointer[Trouble] // nil while etcd is followed

	membersMu sync.Mutex // guards what follows
	members   []Member   // as read last
	self      func() Member
	tellNow   chan struct{} // of one place, never changed

	seenMu sync.Mutex                                // guards seen
	seen   map[policy.ServiceName]map[string]float64 // Unix seconds, by endpoint id
}

// Open starts the embedded etcd, or connects to the cluster, and reads the
// state. It starts what an open database needs; Run follows changes and Close
// ends everything. GetOrCreate and every write work before Run too; a write
// then reads the whole state again, so Run is to be started soon.
// The errors are ErrLocked, ErrFull, ErrUnavailable, or say what is wrong with
// the directory.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	s := &Store{
		cfg: cfg, keys: keys(cfg.Prefix), watches: map[*Watch]struct{}{},
		waiters: map[*waiter]struct{}{}, turn: make(chan struct{}, 1), tellNow: make(chan struct{}, 1), keptFrom: map[string]string{}, seen: map[policy.ServiceName]map[string]float64{},
	}
	s.model = newModel(s.keys, cfg.Log)
	s.unweighed.Store(cfg.historyBytes / pruneParts) // what is there already
	empty, _ := s.model.state(0)
	s.current.Store(empty)
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context) error {
	if len(s.cfg.Endpoints) > 0 {
		s.last = &connecting{secure: strings.HasPrefix(s.cfg.Endpoints[0], "https://")}
		client, err := dial(ctx, s.cfg, s.last)
		s.client = client
		return err
	}
	srv, err := startServer(ctx, s.cfg.DataDir, s.cfg.quota, s.cfg.Log)
	if err != nil {
		return err
	}
	s.server, s.client = srv, srv.client()
	return nil
}

func dial(ctx context.Context, cfg Config, last *connecting) (*clientv3.Client, error) {
	at := strings.Join(cfg.Endpoints, ", ")
	if err := cfg.Access.Check(cfg.Endpoints); err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", at, err)
	}
	client, err := newClient(cfg, last)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", at, last.explain(err))
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if _, err := client.Get(ctx, cfg.Prefix, clientv3.WithCountOnly()); err != nil {
		return nil, errors.Join(fmt.Errorf("etcd at %s: %w", at, last.explain(err)), client.Close())
	}
	return client, nil
}

func newClient(cfg Config, last *connecting) (*clientv3.Client, error) {
	user, password, err := cfg.Access.user()
	if err != nil {
		return nil, err
	}
	c := clientv3.Config{
		Endpoints: cfg.Endpoints, Logger: quiet(cfg.Log), DialTimeout: openTimeout, Username: user, Password: password,
		MaxCallSendMsgSize: maxRequestBytes + 1<<20,
		// A peer that vanished without a word is noticed after 15 s, and with a
		// request under way after 5 s.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	}
	c.DialOptions = []grpc.DialOption{grpc.WithContextDialer(last.dial)}
	if last.secure {
		c.DialOptions = append(c.DialOptions, grpc.WithTransportCredentials(reloading{&cfg.Access, last}))
	}
	return clientv3.New(c)
}

// Close ends what Open started. Run and Next return; writes answer ErrClosed.
// Closing twice does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for w := range s.watches {
		close(w.done)
	}
	clear(s.watches)
	s.announceLocked(true)
	s.mu.Unlock()
	err := s.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // the in-process client reports its own end
	}
	if s.server != nil {
		err = errors.Join(err, s.server.stop())
	}
	return err
}
