package dns

import (
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// ResolvConf is what a resolv.conf(5) says.
type ResolvConf struct {
	Nameservers []netip.AddrPort // port 53, in the file's order
	Search      []string         // without trailing dots
	Ndots       int              // 1 unless set, 15 at most
}

// ParseResolvConf reads a resolv.conf(5) of up to 1 MiB. Lines, options and
// addresses that it does not know are passed over, as the C library does; the
// error is only ever r's. A file without a nameserver line has no Nameservers:
// the C library would ask 127.0.0.1 then.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	conf := ResolvConf{Ndots: 1}
	text, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return conf, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if ip, err := netip.ParseAddr(words[1]); err == nil {
				conf.Nameservers = append(conf.Nameservers, netip.AddrPortFrom(ip, 53))
			}
		case "search", "domain": // the last of either counts
			conf.Search = nil
			for _, domain := range words[1:] {
				if domain = strings.TrimSuffix(domain, "."); domain != "" {
					conf.Search = append(conf.Search, domain)
				}
			}
		case "options":
			for _, option := range words[1:] {
				if n, ok := strings.CutPrefix(option, "ndots:"); ok {
					if v, err := strconv.Atoi(n); err == nil && v >= 0 {
						conf.Ndots = min(v, 15)
					}
				}
			}
		}
	}
	return conf, nil
}
