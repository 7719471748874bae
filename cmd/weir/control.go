package main

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/controlplane"
)

func newControlCommand() *cobra.Command {
	cfg := controlplane.Config{Version: versionText()}
	var store, logLevel, logFormat string
	cmd := &cobra.Command{
		Use: "control", Short: "Run the control plane", Args: cobra.NoArgs,
		RunE: runs(nil, func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Store, err = storeURLs(store); err != nil {
				return err
			}
			if cfg.Store == nil && cfg.StoreCAFile+cfg.StoreCertFile+cfg.StoreKeyFile+cfg.StoreUserFile != "" {
				return usagef("--store-ca-file, --store-cert-file, --store-key-file and --store-user-file are for an etcd cluster; --store names none")
			}
			if !(cfg.CertificateAlarm > 0 && cfg.CertificateAlarm < 1) {
				return usagef("--certificate-alarm %v is not between 0 and 1", cfg.CertificateAlarm)
			}
			cfg.Notify = func(state string) { _, _ = daemon.SdNotify(false, state) } // nobody listens where there is no systemd
			if cfg.Log, err = newLog(logLevel, logFormat); err != nil {
				return err
			}
			defer func() { _ = cfg.Log.Sync() }() // standard error has nothing to flush
			// The root's key is in this process: it leaves no core file, and what /proc
			// shows of its memory is root's, not of all programs of its user.
			if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
				return fmt.Errorf("keep other programs from this one's memory: %w", err)
			}
			return controlplane.Run(cmd.Context(), cfg)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", dataDir(), "directory of the embedded store and admin.token (WEIR_DATA_DIR)")
	f.StringVar(&cfg.ConfigFile, "config", "", "mesh file (mesh-config.yml) with settings and services; its changes are followed")
	f.StringVar(&cfg.HTTPAddr, "http-addr", "127.0.0.1:8080", "where the REST API is served; HTTPS on any address but loopback")
	f.StringVar(&cfg.GRPCAddr, "grpc-addr", "0.0.0.0:8081", "where proxies connect")
	f.StringVar(&store, "store", "embedded", "embedded, or the URLs of an etcd cluster, comma separated")
	f.StringVar(&cfg.StorePrefix, "store-prefix", "/weir/", "of every key in an etcd cluster; meshes that share one differ in it")
	f.StringVar(&cfg.StoreCAFile, "store-ca-file", "", "certificate authorities of an etcd cluster, PEM; without it the system's")
	f.StringVar(&cfg.StoreCertFile, "store-cert-file", "", "certificate for an etcd cluster that asks for one, PEM; read anew when it is replaced")
	f.StringVar(&cfg.StoreKeyFile, "store-key-file", "", "its key, PEM")
	f.StringVar(&cfg.StoreUserFile, "store-user-file", "", "file with USER:PASSWORD for an etcd cluster with authentication")
	f.StringVar(&cfg.Name, "name", "", "of this control plane among several on one etcd cluster; without it the machine's name")
	f.StringVar(&cfg.TrustDomain, "trust-domain", "weir.local", "of the SPIFFE IDs that are given out")
	f.StringSliceVar(&cfg.Hosts, "host", nil, "further names and addresses for the control plane's certificate")
	f.StringVar(&cfg.CACertFile, "ca-cert", "", "certificate of a CA of one's own, PEM: an intermediate or a root; read anew when it is replaced")
	f.StringVar(&cfg.CAKeyFile, "ca-key", "", "its key, PEM")
	f.StringVar(&cfg.CAChainFile, "ca-chain", "", "what is above it up to the root, PEM, where --ca-cert does not hold it")
	f.StringVar(&cfg.KeyEncryptionFile, "ca-key-encryption", "", "file with the keys by which the CA's keys are encrypted in the store: base64 of 32 bytes a line, the first encrypts")
	f.Float64Var(&cfg.CertificateAlarm, "certificate-alarm", 1.0/3, "part of its lifetime below which a certificate needs attention")
	f.DurationVar(&cfg.LeafTTL, "leaf-ttl", 0, "how long workload certificates hold (default 24h)")
	f.BoolVar(&cfg.InsecureAPI, "insecure-api", false, "serve the API without a token, on loopback only")
	j := &cfg.Joining
	f.BoolVar(&j.Kubernetes, "kubernetes-join", false, "let pods join with their service account's token, checked by a TokenReview")
	f.StringVar(&j.KubernetesAPI, "kubernetes-api", "", "URL of the Kubernetes API server; without it that of the pod we are in")
	f.StringVar(&j.KubernetesCAFile, "kubernetes-ca", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "certificate authorities of the API server, PEM")
	f.StringVar(&j.KubernetesTokenFile, "kubernetes-token-file", "/var/run/secrets/kubernetes.io/serviceaccount/token", "token to ask the API server with; its account may create tokenreviews")
	f.StringVar(&j.KubernetesAudience, "kubernetes-audience", "weir", "that the pods' tokens must have been made for")
	f.StringSliceVar(&j.KubernetesMap, "kubernetes-map", nil, "NAMESPACE/ACCOUNT=SERVICE: another service of its namespace that an account may join as, besides the one of its own name")
	f.StringVar(&j.SPIREBundleFile, "spire-bundle", "", "roots of SPIRE in this trust domain, PEM or a SPIFFE bundle: workloads with its identities are taken; followed when it changes")
	f.StringVar(&j.SPIFFETemplate, "spiffe-template", "", "how the paths of SPIRE's IDs name services (default /ns/{namespace}/sa/{service}); the same for all proxies")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "console", "console or json")
	return cmd
}

// storeURLs reads --store; none stands for the embedded store.
func storeURLs(s string) ([]string, error) {
	if s == "embedded" {
		return nil, nil
	}
	urls := strings.Split(s, ",")
	for i, u := range urls {
		urls[i] = strings.TrimSpace(u)
		if !strings.HasPrefix(urls[i], "http://") && !strings.HasPrefix(urls[i], "https://") {
			return nil, usagef("--store %q: %q is neither \"embedded\" nor an http:// or https:// URL", s, urls[i])
		}
	}
	return urls, nil
}

func newLog(level, format string) (*zap.Logger, error) {
	cfg := zap.NewProductionConfig()
	if err := cfg.Level.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log-level %q is not debug, info, warn or error", level)
	}
	if format != "console" && format != "json" {
		return nil, usagef("--log-format %q is not console or json", format)
	}
	cfg.Encoding, cfg.Sampling, cfg.DisableStacktrace, cfg.DisableCaller = format, nil, true, true
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return log, nil
}
