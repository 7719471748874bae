package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

const (
	// etcd allocates its log ahead in segments; 64 MB, its default, twice over
	// is more than a small machine's state should cost. The price of smaller
	// ones is a new file every few ten thousand writes.
	segmentBytes = 8 << 20
	// minFree is what must be free on the disk for a write to be taken: the
	// next segment, and the database growing. etcd ends the process when its
	// log cannot grow, so writes are refused before.
	minFree = 3 * segmentBytes
	// What one change of the mesh may hold: etcd's defaults, 128 operations and
	// 1.5 MB, are less than a file of a few hundred rules. The price is that a
	// transaction of ten thousand holds up the others for some 100 ms.
	maxTxnOps       = 25_000
	maxRequestBytes = 10 << 20 // the most that etcd recommends
	// startTimeout bounds the wait for the embedded etcd: a long log is replayed
	// at several 10 MB/s.
	startTimeout = time.Minute
)

// The size is a variable of etcd's for the whole process, so it is set before
// anything can read it.
func init() { wal.SegmentSizeBytes = segmentBytes }

// server is the embedded etcd. It listens nowhere: its client calls it in
// process.
type server struct {
	dir   string
	quota int64
	lock  *os.File
	etcd  *embed.Etcd

	failOnce sync.Once
	cause    error         // set before broken is closed
	broken   chan struct{} // closed when etcd gave up
}

// startServer starts a single member on a directory. The caller's process is
// the only one on it until stop.
func startServer(ctx context.Context, dataDir string, quota int64, log *zap.Logger) (*server, error) {
	if dataDir == "" {
		return nil, errors.New("store: no data directory is given")
	}
	dir, err := makeDir(dataDir)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, quota: quota, lock: lock, broken: make(chan struct{})}
	if err := s.start(ctx, log); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *server) start(ctx context.Context, log *zap.Logger) error {
	if err := s.space(); err != nil {
		return err
	}
	if err := checkDatabase(filepath.Join(s.dir, "member", "snap", "db")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	cfg := s.config(log)
	go func() { // a goroutine, since etcd ends that in which it gives up
		defer func() {
			if p := recover(); p != nil { // seen with a log whose head is damaged
				s.fail(fmt.Errorf("the embedded etcd in %s cannot start: %v; its files are damaged: restore the directory from a copy", s.dir, p))
			}
		}()
		e, err := embed.StartEtcd(cfg)
		started <- result{e, err}
	}()
	select {
	case r := <-started:
		if r.err != nil {
			return fmt.Errorf("start the embedded etcd in %s: %w", s.dir, r.err)
		}
		s.etcd = r.etcd
		return s.ready(ctx)
	case <-s.broken:
		return s.cause
	case <-ctx.Done():
		return fmt.Errorf("start the embedded etcd in %s: %w", s.dir, ctx.Err())
	}
}

// ready waits until the member leads itself.
func (s *server) ready(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case <-s.broken:
		return s.cause
	case <-ctx.Done():
		s.etcd.Close()
		return fmt.Errorf("start the embedded etcd in %s: %w", s.dir, ctx.Err())
	}
}

func (s *server) config(log *zap.Logger) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "weir", s.dir
	// Nothing is listened on. The addresses are names in the member list only.
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	self := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{self}, []url.URL{self}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false
	cfg.MaxTxnOps, cfg.MaxRequestBytes = maxTxnOps, maxRequestBytes
	cfg.QuotaBackendBytes = s.quota
	// Nobody asks for the past but a watch that is a moment behind, and what is
	// kept of it is in memory: 100 000 registrations are 200 MiB.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "5m"
	cfg.BootstrapDefragThresholdMegabytes = 64
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quiet(log).WithOptions(
		zap.WithFatalHook(giveUp{s}), zap.WithPanicHook(giveUp{s})))
	return cfg
}

// giveUp is called when etcd cannot go on (it logs "fatal"). Its own way is to
// end the process; ours is to end that goroutine, after which nothing more is
// acknowledged, and let Run report it.
type giveUp struct{ s *server }

func (g giveUp) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	g.s.fail(fmt.Errorf("the embedded etcd in %s gave up: %s: %v", g.s.dir, entry.Message, enc.Fields["error"]))
	zapcore.WriteThenGoexit.OnWrite(entry, fields)
}

func (s *server) fail(err error) {
	s.failOnce.Do(func() {
		s.cause = err
		close(s.broken)
	})
}

// failed is closed when etcd gave up; never for a nil server.
func (s *server) failed() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.broken
}

// failure tells why etcd gave up; nil while it did not.
func (s *server) failure() error {
	select {
	case <-s.failed():
		return s.cause
	default:
		return nil
	}
}

func (s *server) client() *clientv3.Client { return v3client.New(s.etcd.Server) }

// stop ends the member and lets go of the directory. One that gave up is left
// as it is: its parts wait for each other, and the process is about to end.
func (s *server) stop() error {
	if s.failure() == nil {
		s.etcd.Close()
	}
	return s.lock.Close()
}

// space refuses when the disk is nearly full.
func (s *server) space() error {
	if s == nil {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < minFree {
		return fmt.Errorf("%w: the disk of %s has %d MiB free, %d are needed to store anything", ErrFull, s.dir, free>>20, minFree>>20)
	}
	return nil
}

// makeDir makes the data directory, open to nobody else: the certificate
// authority's key is in there.
func makeDir(dataDir string) (string, error) {
	dir, err := filepath.Abs(dataDir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.Chmod(dir, 0o700) // it may have been there before
	}
	if err != nil {
		return "", fmt.Errorf("data directory %s: %w", dataDir, err)
	}
	return dir, nil
}

// lockDir takes the directory for this process. The kernel lets go of it when
// the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.Read(holder) // who holds it is told as far as it is known
		by := strings.TrimSpace(string(holder[:n]))
		if by != "" {
			by = " by process " + by
		}
		return nil, errors.Join(fmt.Errorf("%s: %w%s", dir, ErrLocked, by), f.Close())
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("data directory %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// checkDatabase opens etcd's database file and closes it again: etcd itself
// answers one that is damaged with a panic.
func checkDatabase(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("etcd's database %s cannot be read: %w; restore the data directory from a copy", path, err)
	}
	return db.Close()
}

// routine are warnings of etcd that mean nothing here.
var routine = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// quiet gives a logger for etcd that lets warnings and worse pass.
func quiet(log *zap.Logger) *zap.Logger {
	return log.Named("etcd").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return quietCore{c} }))
}

type quietCore struct{ zapcore.Core }

func (c quietCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && c.Core.Enabled(l) }

func (c quietCore) With(f []zapcore.Field) zapcore.Core { return quietCore{c.Core.With(f)} }

func (c quietCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || routine[e.Message] {
		return ce
	}
	return c.Core.Check(e, ce)
}
