package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy"
	"github.com/weir-mesh/weir/proxy/dns"
	"github.com/weir-mesh/weir/redirect"
)

// flags are the command line as typed.
type flags struct {
	control            []string
	service, namespace string
	tokenFile          string
	joinKubernetes     bool
	joining            proxy.Joining
	appPorts, labels   []string
	advertise          []string
	healthPath         string
	weight             int
	id, stateDir       string

	outboundPort, inboundPort, dnsPort uint16
	adminAddr                          string
	resolvConf, clusterDomain          string
	mark, inboundMark, appSource       string

	maxConns                 int
	drainDelay, drainTimeout time.Duration
	accessLog                string
	logLevel, logFormat      string
	pprof                    bool
	said                     func(flag string) bool // whether it was given
}

func defaults() *flags {
	def := redirect.DefaultConfig()
	return &flags{
		namespace: "default", healthPath: "/health", weight: 100,
		outboundPort: def.OutboundPort, inboundPort: def.InboundPort, dnsPort: def.DNSPort, adminAddr: "127.0.0.1:15000",
		resolvConf: "/etc/resolv.conf", clusterDomain: "cluster.local",
		mark: fmt.Sprintf("%#x", def.Mark), inboundMark: fmt.Sprintf("%#x", def.InboundMark),
		maxConns: 10_000, drainDelay: time.Second, drainTimeout: 30 * time.Second,
		accessLog: "stdout", logLevel: "info", logFormat: "json",
	}
}

func (f *flags) register(s *pflag.FlagSet) {
	f.said = s.Changed
	s.StringSliceVar(&f.control, "control", nil, "control plane address, HOST:PORT; several are tried in turn")
	s.StringVar(&f.service, "service", "", "name of the app's service")
	s.StringVar(&f.namespace, "namespace", f.namespace, "namespace of the app's service")
	s.StringVar(&f.tokenFile, "token-file", "", `file with the join token of "weir token create"`)
	s.BoolVar(&f.joinKubernetes, "join-kubernetes", false, "join with the token of the pod's service account, in the place of --token-file")
	s.StringVar(&f.joining.AccountTokenFile, "kubernetes-token-file", "/var/run/secrets/weir/token", "with --join-kubernetes: a projected token, made for the audience that weir control asks for")
	s.StringVar(&f.joining.SpireSocket, "spire-socket", "", "Workload API of a SPIRE agent that gives the identity, in the place of --token-file")
	s.StringVar(&f.joining.SPIFFETemplate, "spiffe-template", "", "with --spire-socket: how the paths of its IDs name services (default "+string(policy.DefaultIDTemplate)+")")
	s.StringVar(&f.joining.ControlCAFile, "control-ca", "", "file with the control plane's roots (GET /api/v1/certificates/ca); a join token says them itself")
	s.StringSliceVar(&f.appPorts, "app-port", nil, "port the app listens on, PORT or PORT/PROTOCOL ("+strings.Join(policy.Protocols, ", ")+", or a name for one such as kubernetes.io/h2c, https, mysql); registered as an endpoint while the proxy runs")
	s.StringSliceVar(&f.labels, "label", nil, "label of the endpoints, KEY=VALUE (version=v2 puts them in subset v2; zone=z is the zone of this proxy, too)")
	s.StringSliceVar(&f.advertise, "advertise", nil, "address of the app, instead of this host's own")
	s.StringVar(&f.healthPath, "health-path", f.healthPath, "path that the health check asks for")
	s.IntVar(&f.weight, "weight", f.weight, "weight of the endpoints; 0 drains")
	s.StringVar(&f.id, "id", "", "name of this proxy (default: made of service, host and address)")
	s.StringVar(&f.stateDir, "state-dir", "", "directory for key, certificate and last known state, so that a restart needs no control plane")
	s.Uint16Var(&f.outboundPort, "outbound-port", f.outboundPort, "port that the app's connections are redirected to, on loopback")
	s.Uint16Var(&f.inboundPort, "inbound-port", f.inboundPort, "port that connections to the app are redirected to")
	s.Uint16Var(&f.dnsPort, "dns-port", f.dnsPort, "port that DNS is redirected to, on loopback")
	s.StringVar(&f.adminAddr, "admin-addr", f.adminAddr, "address for /health, /ready, /status and /metrics")
	s.BoolVar(&f.pprof, "pprof", false, "answer on the admin address also with Go's profiles of the proxy, under /debug/pprof/")
	s.StringVar(&f.resolvConf, "resolv-conf", f.resolvConf, "where the resolvers for other names are read from")
	s.StringVar(&f.clusterDomain, "cluster-domain", f.clusterDomain, "what full names of services end in")
	s.StringVar(&f.mark, "mark", f.mark, `mark on the proxy's own connections, as given to weir-init; "none" where the proxy is told by its uid`)
	s.StringVar(&f.appSource, "app-source", "own", "whose address the app sees as its caller's: own, client (weir-init --preserve-source), proxy-protocol, or one like 127.0.0.6")
	s.StringVar(&f.inboundMark, "inbound-mark", f.inboundMark, "mark on connections to the app, as given to weir-init")
	s.IntVar(&f.maxConns, "max-connections", f.maxConns, "connections at once in each direction; more wait")
	s.DurationVar(&f.drainDelay, "drain-delay", f.drainDelay, "time between leaving the mesh and refusing connections")
	s.DurationVar(&f.drainTimeout, "drain-timeout", f.drainTimeout, "time for open connections to end before they are cut")
	s.StringVar(&f.accessLog, "access-log", f.accessLog, "where the access log goes when the mesh turns it on: stdout, stderr or a file; given, it wins over the mesh's setting")
	s.StringVar(&f.logLevel, "log-level", f.logLevel, "debug, info, warn or error; given, it wins over the mesh's setting")
	s.StringVar(&f.logFormat, "log-format", f.logFormat, "json or console; given, it wins over the mesh's setting")
}

// config turns the flags into a configuration; errors name the flag. The func
// closes what was opened for it.
func (f *flags) config() (cfg proxy.Config, closers func(), err error) {
	closers = func() {}
	cfg = proxy.Config{
		Service: policy.ServiceName{Namespace: f.namespace, Name: f.service}, ID: f.id, Version: version,
		Control: f.control, TokenFile: f.tokenFile, Joining: f.joining, StateDir: f.stateDir,
		HealthPath: f.healthPath, Weight: f.weight, Admin: f.adminAddr, Profiles: f.pprof, ClusterDomain: f.clusterDomain,
		OriginalDst:   redirect.OriginalDst,
		NotRedirected: func(err error) bool { return errors.Is(err, redirect.ErrNotRedirected) },
		MaxConns:      f.maxConns, DrainDelay: f.drainDelay, DrainTimeout: f.drainTimeout,
	}
	log, err := f.logger()
	if err != nil {
		return cfg, closers, err
	}
	cfg.Log, cfg.SetLog, cfg.AccessLogAs = log.logger(), log.set, f.accessLogAs()
	for _, step := range []func(*proxy.Config) error{f.setJoining, f.checkBounds, f.setPorts, f.setLabels, f.setAddresses, f.setMarks, f.setResolvers} {
		if err := step(&cfg); err != nil {
			return cfg, closers, err
		}
	}
	w, closeLog, err := openLog(f.accessLog)
	if err != nil {
		return cfg, closers, fmt.Errorf("--access-log: %w", err)
	}
	cfg.AccessLog = w
	return cfg, closeLog, nil
}

// setJoining checks that there is one way to join.
func (f *flags) setJoining(cfg *proxy.Config) error {
	if !f.joinKubernetes {
		cfg.Joining.AccountTokenFile = ""
	}
	ways := 0
	for _, given := range []bool{f.tokenFile != "", f.joinKubernetes, f.joining.SpireSocket != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		return errors.New("one of --token-file, --join-kubernetes and --spire-socket is needed, and not more")
	case f.said("kubernetes-token-file") && !f.joinKubernetes:
		return errors.New("--kubernetes-token-file goes with --join-kubernetes")
	case f.joinKubernetes && f.joining.ControlCAFile == "":
		return errors.New("--join-kubernetes needs --control-ca FILE with the control plane's root: the pod's token is sent to nobody else")
	case f.joining.SPIFFETemplate != "" && f.joining.SpireSocket == "":
		return errors.New("--spiffe-template goes with --spire-socket")
	}
	return nil
}

func (f *flags) checkBounds(*proxy.Config) error {
	switch {
	case f.maxConns < 1:
		return fmt.Errorf("--max-connections %d: at least 1 is meant", f.maxConns)
	case f.drainDelay < 0:
		return fmt.Errorf("--drain-delay %v: a time before now", f.drainDelay)
	case f.drainTimeout < 0:
		return fmt.Errorf("--drain-timeout %v: a time before now", f.drainTimeout)
	}
	return nil
}

func (f *flags) setPorts(cfg *proxy.Config) error {
	for _, s := range f.appPorts {
		number, protocol, ok := strings.Cut(s, "/")
		if !ok {
			protocol = "http"
		}
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("--app-port %q: meant is PORT or PORT/PROTOCOL with a port in 1..65535", s)
		}
		if protocol = policy.NormalProtocol(protocol); !slices.Contains(policy.Protocols, protocol) {
			return fmt.Errorf("--app-port %q: %q is not one of %s", s, protocol, strings.Join(policy.Protocols, ", "))
		}
		cfg.AppPorts = append(cfg.AppPorts, proxy.AppPort{Port: uint16(port), Protocol: protocol})
	}
	return nil
}

func (f *flags) setLabels(cfg *proxy.Config) error {
	for _, s := range f.labels {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return fmt.Errorf("--label %q: meant is KEY=VALUE", s)
		}
		if cfg.Labels == nil {
			cfg.Labels = map[string]string{}
		}
		cfg.Labels[k] = v
	}
	return nil
}

func (f *flags) setAddresses(cfg *proxy.Config) error {
	for _, s := range f.advertise {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--advertise %q: %w", s, err)
		}
		cfg.Advertise = append(cfg.Advertise, a)
	}
	loopback := []string{"127.0.0.1"}
	if hasIPv6() {
		loopback = append(loopback, "::1")
	}
	for _, host := range loopback {
		cfg.Outbound = append(cfg.Outbound, net.JoinHostPort(host, strconv.Itoa(int(f.outboundPort))))
		cfg.DNS = append(cfg.DNS, net.JoinHostPort(host, strconv.Itoa(int(f.dnsPort))))
	}
	cfg.Inbound = []string{net.JoinHostPort("", strconv.Itoa(int(f.inboundPort)))}
	return nil
}

// hasIPv6 tells whether this namespace has IPv6 at all.
func hasIPv6() bool {
	b, err := os.ReadFile("/proc/net/if_inet6")
	return err == nil && len(b) > 0
}

func (f *flags) setMarks(cfg *proxy.Config) error {
	r := redirect.DefaultConfig()
	if f.mark == "none" {
		uid := uint32(os.Getuid())
		if uid == 0 {
			return fmt.Errorf("--mark none: as root marks are to be had, and uid 0 is everybody's; leave it out, or run as another user")
		}
		r.ProxyUID = &uid
	} else {
		for _, m := range []struct {
			flag, text string
			to         *uint32
		}{{"--mark", f.mark, &r.Mark}, {"--inbound-mark", f.inboundMark, &r.InboundMark}} {
			v, err := strconv.ParseUint(m.text, 0, 32)
			if err != nil || v == 0 {
				return fmt.Errorf("%s %q: meant is a number in 1..0xffffffff", m.flag, m.text)
			}
			*m.to = uint32(v)
		}
	}
	var err error
	if cfg.AppSource, err = proxy.ParseAppSource(f.appSource); err != nil {
		return fmt.Errorf("--app-source %w", err)
	}
	if cfg.AppSource.Client && r.ProxyUID != nil {
		return fmt.Errorf("--app-source client: the app's answers are brought back by the mark, which --mark none does without")
	}
	cfg.ToMesh, cfg.ToApp = redirect.UpstreamControl(r), redirect.InboundControl(r)
	return nil
}

func (f *flags) setResolvers(cfg *proxy.Config) error {
	file, err := os.Open(f.resolvConf)
	if err != nil {
		return fmt.Errorf("--resolv-conf: %w", err)
	}
	defer func() { _ = file.Close() }()
	if cfg.ResolvConf, err = dns.ParseResolvConf(file); err != nil {
		return fmt.Errorf("--resolv-conf %s: %w", f.resolvConf, err)
	}
	return nil
}

func (f *flags) logger() (*logSwitch, error) {
	level, err := zapcore.ParseLevel(f.logLevel)
	if err != nil {
		return nil, fmt.Errorf("--log-level %q: not debug, info, warn or error", f.logLevel)
	}
	if f.logFormat != "json" && f.logFormat != "console" {
		return nil, fmt.Errorf("--log-format %q: not json or console", f.logFormat)
	}
	s := newLogSwitch(os.Stderr, level, f.logFormat)
	s.keepLevel, s.keepForm = f.said("log-level"), f.said("log-format")
	return s, nil
}

// accessLogAs gives the writers that the mesh may choose among, nil where a flag
// has chosen.
func (f *flags) accessLogAs() func(string) io.Writer {
	if f.said("access-log") {
		return nil
	}
	return func(output string) io.Writer {
		switch output {
		case "stdout":
			return os.Stdout
		case "stderr":
			return os.Stderr
		}
		return nil
	}
}

func openLog(where string) (io.Writer, func(), error) {
	switch where {
	case "stdout":
		return os.Stdout, func() {}, nil
	case "stderr":
		return os.Stderr, func() {}, nil
	}
	file, err := os.OpenFile(where, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return file, func() { _ = file.Close() }, nil
}
