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
		Use: "token", Short: "Make, list and revoke join tokens", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("create, list or revoke is missing") },
	}
	cmd.AddCommand(newTokenCreateCommand(opt), newTokenListCommand(opt), newTokenRevokeCommand(opt))
	return cmd
}

func newTokenCreateCommand(opt *options) *cobra.Command {
	var name policy.ServiceName
	var ttl time.Duration
	var uses int
	cmd := &cobra.Command{
		Use: "create --service SERVICE", Short: "Make a token with which a service's proxies join the mesh", Args: cobra.NoArgs,
		Example: "  weir token create --service web --namespace default > web.token",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usagef("--ttl %v is less than a second", ttl)
			}
			if cmd.Flags().Changed("uses") && (uses < 1 || uses > policy.MaxTokenUses) {
				return usagef("--uses %d is not in 1..%d; without it any number may join", uses, policy.MaxTokenUses)
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			token, err := c.CreateTokenFor(cmd.Context(), name, ttl, uses)
			if err != nil {
				return err
			}
			return opt.print(cmd, token, func(w io.Writer) error {
				expires := time.Unix(int64(token.Expires), 0).UTC().Format(time.RFC3339)
				cmd.PrintErrf("token %s for %s, expires %s, for %s\n", token.ID, name, expires, proxiesText(token.Uses))
				_, err := fmt.Fprintln(w, token.Token)
				return err
			})
		}),
	}
	f := cmd.Flags()
	f.StringVar(&name.Name, "service", "", "the service")
	f.StringVarP(&name.Namespace, "namespace", "n", "default", "its namespace")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used to join")
	f.IntVar(&uses, "uses", 0, "how many proxies can join with it; without it any number. One that joined renews its certificate, and restarts with its --state-dir, without a use")
	_ = cmd.MarkFlagRequired("service") // fails for an unknown flag only
	return cmd
}

func proxiesText(uses int) string {
	switch uses {
	case 0:
		return "any number of proxies"
	case 1:
		return "1 proxy"
	}
	return fmt.Sprintf("%d proxies", uses)
}

func newTokenListCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens that have not expired, without what is secret of them", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			tokens, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return opt.print(cmd, tokens, func(w io.Writer) error {
				var rows [][]string
				for i := range tokens {
					t := &tokens[i]
					used := ""
					if t.Uses > 0 {
						used = fmt.Sprintf("%d/%d", t.Used, t.Uses)
					}
					rows = append(rows, []string{t.ID, t.Namespace, t.ServiceName, t.State, used, when(t.Created), when(t.Expires)})
				}
				return table(w, "ID NAMESPACE SERVICE STATE USED CREATED EXPIRES", rows)
			})
		}),
	}
}

func newTokenRevokeCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Have a token refused from now on; who joined with it stays", Args: cobra.ExactArgs(1),
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			if err := c.RevokeToken(cmd.Context(), args[0]); err != nil {
				return err
			}
			return opt.print(cmd, map[string]string{"token": args[0], "state": "revoked"}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "token %s revoked\n", args[0])
				return err
			})
		}),
	}
}
