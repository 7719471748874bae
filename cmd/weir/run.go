package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/cmd/weir/launch"
	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// exitError carries the exit status of weir run: its program's, or with an error
// its own.
type exitError struct {
	error
	status int
}

func (e *exitError) Unwrap() error { return e.error }

func (e *exitError) Error() string {
	if e.error == nil {
		return fmt.Sprintf("the program's exit status is %d", e.status)
	}
	return e.error.Error()
}

const runLong = `run starts a program in the mesh. It makes a network namespace on a bridge of this
machine, puts the redirection there, starts a proxy, waits until that has joined the
mesh, and then starts the program, as the user who called sudo, with this
environment, terminal, standard streams and directory. Signals are passed on, and
the exit status is the program's: 128+N if signal N ended it, 127 if there is no such
program, 126 if it cannot be run, 125 if weir run itself failed.

When the program ends, what it has left running is ended too, the proxy leaves the
mesh and drains, and nothing is left. Without a join token in --token-file one is
made, with the control plane's admin token (WEIR_TOKEN_FILE).`

func newRunCommand(opt *options) *cobra.Command {
	var cfg launch.Config
	var tokenFile string
	var list bool
	cmd := &cobra.Command{
		Use: "run --service NAME [--port PORT]… -- PROGRAM [ARGUMENT]…", Short: "Run a program in the mesh", Long: runLong,
		Example: "  sudo weir run --service web --namespace shop --port 8080 -- ./server --its --own flags",
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			if list {
				return printRuns(cmd, opt)
			}
			if err := checkRun(&cfg, args); err != nil {
				return err
			}
			cfg.Token = func(ctx context.Context) (string, error) { return joinToken(ctx, opt, tokenFile, &cfg) }
			status, err := launch.Run(cmd.Context(), cfg)
			if usage, ok := errors.AsType[launch.Usage](err); ok {
				return usagef("%v", usage)
			}
			if err != nil {
				return &exitError{err, launch.Status(err)}
			}
			if status != 0 {
				return &exitError{nil, status}
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the program is its own
	f.StringVar(&cfg.Service, "service", "", "the program's service")
	f.StringVarP(&cfg.Namespace, "namespace", "n", "default", "namespace of the service")
	f.StringSliceVar(&cfg.Ports, "port", nil, "port the program listens on, PORT or PORT/PROTOCOL as for weir-proxy --app-port; registered while it runs")
	f.StringSliceVar(&cfg.Labels, "label", nil, "label of its endpoints, KEY=VALUE")
	f.StringVar(&cfg.Health, "health-path", "/health", "path that the health check asks for")
	f.StringSliceVar(&cfg.Publish, "publish", nil, "HOST:PORT:PORT or PORT:PORT: let an address of this machine (127.0.0.1 where none is named) lead to a port of the program, through its proxy")
	f.StringArrayVar(&cfg.Env, "env", nil, "KEY=VALUE for the program's environment")
	f.StringArrayVar(&cfg.EnvFile, "env-file", nil, "file with lines of KEY=VALUE")
	f.StringVar(&cfg.User, "user", "", "run the program as this user: NAME or UID, with :GROUP or :GID for another group (without it, who called sudo)")
	f.StringVar(&cfg.Dir, "dir", "", "directory that the program starts in, instead of this one")
	f.DurationVar(&cfg.Grace, "grace", 10*time.Second, "time between SIGTERM and SIGKILL for what the program leaves running when it ends")
	f.StringVar(&cfg.Netns, "netns", "", "join this network namespace, a path or a name of ip netns, instead of making one; it is left as it was")
	f.StringVar(&cfg.Subnet, "subnet", env("WEIR_SUBNET", "10.79.0.0/24"), "addresses of the bridge, the same for all runs of a machine (WEIR_SUBNET)")
	f.BoolVar(&cfg.NAT, "nat", false, "let the runs of this machine reach what it reaches, under its address; takes nft, and net.ipv4.ip_forward=1")
	f.StringSliceVar(&cfg.DNSSearch, "dns-search", nil, "search list of the program's resolv.conf, in the place of this machine's")
	f.StringSliceVar(&cfg.Control, "control", strings.Split(env("WEIR_CONTROL", "127.0.0.1:8081"), ","), "control plane address for proxies, HOST:PORT, as this machine reaches it; several are tried in turn (WEIR_CONTROL)")
	f.StringVar(&tokenFile, "token-file", "", `file with a join token of "weir token create"; without it one is made`)
	f.StringVar(&cfg.ProxyLog, "proxy-log", "", "file for the proxy's log; without it the log goes with the run")
	f.BoolVar(&list, "list", false, "show the runs of this machine, and start nothing")
	f.StringVar(&opt.server, "server", env("WEIR_SERVER", "http://127.0.0.1:8080"), "URL of the control plane's API, to make a join token (WEIR_SERVER)")
	f.StringVar(&opt.caFile, "ca-file", os.Getenv("WEIR_CA_FILE"), "PEM file with the mesh's root, for an https server (WEIR_CA_FILE)")
	return cmd
}

func checkRun(cfg *launch.Config, args []string) error {
	if cfg.Service == "" {
		return usagef("--service is missing: under which name is the program to be in the mesh?")
	}
	name := policy.ServiceName{Namespace: cfg.Namespace, Name: cfg.Service}
	if err := name.Validate(); err != nil {
		return usagef("--service, --namespace: %v", err)
	}
	if len(args) == 0 {
		return usagef("no program is named: weir run --service %s -- PROGRAM", cfg.Service)
	}
	for _, p := range cfg.Ports {
		number, _, _ := strings.Cut(p, "/")
		if n, err := strconv.ParseUint(number, 10, 16); err != nil || n == 0 {
			return usagef("--port %q: meant is PORT or PORT/PROTOCOL with a port in 1..65535", p)
		}
	}
	cfg.Command = args
	return nil
}

// joinToken reads the file that was named, or has a token made.
func joinToken(ctx context.Context, opt *options, file string, cfg *launch.Config) (string, error) {
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	admin := *opt
	admin.tokenFile = os.Getenv("WEIR_TOKEN_FILE")
	c, err := admin.client()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the admin token, to make a join token with (WEIR_TOKEN_FILE): %w; --token-file names a join token", err)
	}
	if err != nil {
		return "", err
	}
	token, err := c.CreateToken(ctx, policy.ServiceName{Namespace: cfg.Namespace, Name: cfg.Service}, time.Hour)
	var answer *api.Error
	if errors.As(err, &answer) && answer.Status == http.StatusUnauthorized {
		return "", fmt.Errorf("make a join token at %s: the control plane wants an admin token: WEIR_TOKEN_FILE names its file, or --token-file one with a join token", opt.server)
	}
	if err != nil {
		return "", fmt.Errorf("make a join token: %w; --token-file names one, --server another control plane", err)
	}
	return token.Token, nil
}

func printRuns(cmd *cobra.Command, opt *options) error {
	all, err := launch.List()
	if err != nil {
		return err
	}
	return opt.print(cmd, all, func(w io.Writer) error {
		var rows [][]string
		for _, e := range all {
			rows = append(rows, []string{e.Namespace + "/" + e.Service, strconv.Itoa(e.PID), e.Address, strings.Join(e.Ports, ","), strings.Join(e.Published, ","),
				e.Netns, time.Since(e.Started).Round(time.Second).String(), strings.Join(e.Command, " ")})
		}
		return table(w, "SERVICE PID ADDRESS PORTS PUBLISHED NETNS AGE PROGRAM", rows)
	})
}

// newRunInsideCommand is hidden: weir run starts it as the first process of a
// program's namespaces.
func newRunInsideCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run-inside FD", Short: "Start a program for weir run", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: runs(nil, func(_ *cobra.Command, args []string) error {
			fd, err := strconv.Atoi(args[0])
			if err != nil {
				return usagef("%q is no number of a descriptor", args[0])
			}
			return launch.Inside(fd)
		}),
	}
}
