package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/policy"
)

func newTokenCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token create", Short: "Make join tokens", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("create is missing") },
	}
	cmd.AddCommand(newTokenCreateCommand(opt))
	return cmd
}

func newTokenCreateCommand(opt *options) *cobra.Command {
	var name policy.ServiceName
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create --service SERVICE", Short: "Make a token with which a service's proxies join the mesh", Args: cobra.NoArgs,
		Example: "  weir token create --service web --namespace default > web.token",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usagef("--ttl %v is less than a second", ttl)
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			token, err := c.CreateToken(cmd.Context(), name, ttl)
			if err != nil {
				return err
			}
			return opt.print(cmd, token, func(w io.Writer) error {
				expires := time.Unix(int64(token.Expires), 0).UTC().Format(time.RFC3339)
				cmd.PrintErrf("token for %s, expires %s\n", name, expires)
				_, err := fmt.Fprintln(w, token.Token)
				return err
			})
		}),
	}
	f := cmd.Flags()
	f.StringVar(&name.Name, "service", "", "the service")
	f.StringVarP(&name.Namespace, "namespace", "n", "default", "its namespace")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used to join")
	_ = cmd.MarkFlagRequired("service") // fails for an unknown flag only
	return cmd
}
