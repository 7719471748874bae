package redirect

import (
	"fmt"
	"slices"
	"strings"
)

// parseSave reads the output of iptables-save and keeps our part of it: tables
// with a chain of ours or a rule that leads to one. foreign counts the rules of
// others, and chains of the kernel that do not simply accept.
func parseSave(text string) (ours []table, foreign int) {
	var cur table
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			cur = table{name: line[1:]}
		case strings.HasPrefix(line, ":"):
			name, rest, _ := strings.Cut(line[1:], " ")
			if strings.HasPrefix(name, chainPrefix) {
				cur.chains = append(cur.chains, name)
			} else if strings.HasPrefix(rest, "DROP") {
				foreign++
			}
		case strings.HasPrefix(line, "-A "):
			rule := line[len("-A "):]
			switch {
			case strings.HasPrefix(rule, chainPrefix):
				cur.rules = append(cur.rules, rule)
			case leadsToOurs(rule):
				cur.jumps = append(cur.jumps, rule)
			default:
				foreign++
			}
		case line == "COMMIT":
			if len(cur.chains)+len(cur.jumps)+len(cur.rules) > 0 {
				ours = append(ours, cur)
			}
			cur = table{}
		}
	}
	return ours, foreign
}

// leadsToOurs looks at the target, which follows -j or -g.
func leadsToOurs(rule string) bool {
	words := splitRule(rule)
	for i, w := range words[:max(0, len(words)-1)] {
		if (w == "-j" || w == "-g") && strings.HasPrefix(words[i+1], chainPrefix) {
			return true
		}
	}
	return false
}

// splitRule cuts a rule into words. Words in double quotes may hold spaces and
// \" and \\, as iptables-save writes them.
func splitRule(rule string) []string {
	var words []string
	var word strings.Builder
	quoted, started := false, false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case c == '\\' && quoted && i+1 < len(rule):
			i++
			word.WriteByte(rule[i])
		case c == '"':
			quoted, started = !quoted, true
		case c == ' ' && !quoted:
			if started {
				words = append(words, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words
}

// canonical makes rules comparable that differ only in what versions of
// iptables-save print differently: the order of matches, and "-m tcp" beside
// "-p tcp". The chain, which is the first word, stays first.
func canonical(rule string) string {
	words := splitRule(rule)
	var parts []string
	not := ""
	for i := 0; i < len(words); i++ {
		switch {
		case i == 0:
			parts = append(parts, words[0])
		case words[i] == "-m" && i+1 < len(words):
			i++
		case words[i] == "!":
			not = "! "
		default:
			opt := not + words[i]
			not = ""
			for i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") && words[i+1] != "!" {
				i++
				opt += " " + words[i]
			}
			parts = append(parts, opt)
		}
	}
	if len(parts) > 1 {
		slices.Sort(parts[1:])
	}
	return strings.Join(parts, "\x00")
}

// same says whether two states of our part are alike. The order of rules counts
// within a chain only, the order of tables, chains and jumps does not.
func same(a, b []table) bool { return slices.Equal(fingerprint(a), fingerprint(b)) }

func fingerprint(ts []table) []string {
	var out []string
	for _, t := range ts {
		for _, c := range t.chains {
			out = append(out, t.name+"\x00chain\x00"+c)
		}
		for _, j := range t.jumps {
			out = append(out, t.name+"\x00jump\x00"+canonical(j))
		}
		position := map[string]int{}
		for _, r := range t.rules {
			c := chainOf(r)
			out = append(out, fmt.Sprintf("%s\x00rule\x00%s\x00%06d\x00%s", t.name, c, position[c], canonical(r)))
			position[c]++
		}
	}
	slices.Sort(out)
	return out
}

func chainOf(rule string) string {
	chain, _, _ := strings.Cut(rule, " ")
	return chain
}

// change is iptables-restore input, for use with --noflush, that turns our part
// from one state into another and touches nothing else. Each table is one
// transaction: at no moment is a chain empty or a jump gone that both states have.
func change(from, to []table) string {
	var b strings.Builder
	for _, name := range []string{"raw", "mangle", "filter", "nat", "security"} {
		old, oldOK := find(from, name)
		want, wantOK := find(to, name)
		if oldOK || wantOK {
			changeTable(&b, old, want, name)
		}
	}
	return b.String()
}

func find(ts []table, name string) (table, bool) {
	i := slices.IndexFunc(ts, func(t table) bool { return t.name == name })
	if i < 0 {
		return table{}, false
	}
	return ts[i], true
}

func changeTable(b *strings.Builder, old, want table, name string) {
	fmt.Fprintf(b, "*%s\n", name)
	// With --noflush, naming a chain makes it, or empties it if it is there.
	stale := slices.DeleteFunc(slices.Clone(old.chains), func(c string) bool { return slices.Contains(want.chains, c) })
	for _, c := range slices.Concat(want.chains, stale) {
		fmt.Fprintf(b, ":%s - [0:0]\n", c)
	}
	for _, r := range want.rules {
		fmt.Fprintf(b, "-A %s\n", r)
	}
	missing := slices.Clone(want.jumps)
	for _, j := range old.jumps {
		i := slices.IndexFunc(missing, func(m string) bool { return canonical(m) == canonical(j) })
		if i < 0 {
			fmt.Fprintf(b, "-D %s\n", j)
			continue
		}
		missing = slices.Delete(missing, i, i+1) // it stays where it is
	}
	for _, j := range missing {
		// In front: a RETURN or ACCEPT of others before it would let traffic by.
		hook, rest, _ := strings.Cut(j, " ")
		fmt.Fprintf(b, "-I %s 1 %s\n", hook, rest)
	}
	for _, c := range stale {
		fmt.Fprintf(b, "-X %s\n", c)
	}
	b.WriteString("COMMIT\n")
}
