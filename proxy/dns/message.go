package dns

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Sizes of messages, RFC 1035 sections 4.1.1 and 4.2, RFC 6891 section 6.2.3.
const (
	headerSize = 12
	minUDP     = 512
	maxMessage = 65535
)

const typeANY = dnsmessage.TypeALL

// badVersion is BADVERS, RFC 6891 section 9.
const badVersion dnsmessage.RCode = 16

// query is a message that asks something.
type query struct {
	raw         []byte
	header      dnsmessage.Header
	question    dnsmessage.Question
	hasQuestion bool

	edns        bool
	ednsVersion uint8
	limit       int // bytes that the answer may have
}

var (
	errNotQuery  = errors.New("not a query")     // no answer: it could be one itself
	errMalformed = errors.New("malformed")       // FORMERR
	errOpcode    = errors.New("not implemented") // NOTIMP
)

// parseQuery reads a message. With errMalformed and errOpcode, what could be
// read is in the query.
func parseQuery(raw []byte, udp bool) (q query, err error) {
	q = query{raw: raw, limit: maxMessage}
	if udp {
		q.limit = minUDP
	}
	var p dnsmessage.Parser
	if q.header, err = p.Start(raw); err != nil || q.header.Response {
		return q, errNotQuery
	}
	if q.header.OpCode != 0 {
		return q, errOpcode
	}
	// More than one question has no meaning, RFC 9619.
	if q.question, err = p.Question(); err != nil {
		return q, errMalformed
	}
	q.hasQuestion = true
	if _, err = p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, errMalformed
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, errMalformed
	}
	return q, q.readOptions(&p, udp)
}

// readOptions looks for EDNS, RFC 6891 section 6.1.
func (q *query) readOptions(p *dnsmessage.Parser, udp bool) error {
	for {
		h, err := p.AdditionalHeader()
		switch {
		case errors.Is(err, dnsmessage.ErrSectionDone):
			return nil
		case err != nil, h.Type == dnsmessage.TypeOPT && q.edns:
			return errMalformed
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.ednsVersion = true, uint8(h.TTL>>16)
			if udp {
				q.limit = max(minUDP, int(h.Class))
			}
		}
		if p.SkipAdditional() != nil {
			return errMalformed
		}
	}
}

// failure is an answer without records.
func (q *query) failure(code dnsmessage.RCode) []byte { return q.reply(code, false, nil) }

// reply builds an answer: the question as it was asked, case included, and what
// add adds. EDNS is answered with EDNS.
func (q *query) reply(code dnsmessage.RCode, authoritative bool, add func(*dnsmessage.Builder) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, minUDP), dnsmessage.Header{
		ID:                 q.header.ID,
		Response:           true,
		OpCode:             q.header.OpCode,
		Authoritative:      authoritative,
		RecursionDesired:   q.header.RecursionDesired,
		RecursionAvailable: true,
		CheckingDisabled:   q.header.CheckingDisabled,
		RCode:              code & 0xf,
	})
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil && q.hasQuestion {
		err = b.Question(q.question)
	}
	if err == nil && add != nil {
		if err = b.StartAnswers(); err == nil {
			err = add(&b)
		}
	}
	if err == nil && q.edns {
		err = addEDNS(&b, code)
	}
	if err != nil {
		return nil // a name that was parsed can be packed, so this is not reached
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

func addEDNS(b *dnsmessage.Builder, code dnsmessage.RCode) error {
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	var h dnsmessage.ResourceHeader
	// Queries larger than what Ethernet carries are nobody's (DNS flag day 2020).
	if err := h.SetEDNS0(1232, code, false); err != nil {
		return err
	}
	return b.OPTResource(h, dnsmessage.OPTResource{})
}

// meshAnswer answers for a service. Other types than addresses exist with no
// record: NOERROR, so that the client does not look elsewhere.
func (q *query) meshAnswer(v4, v6 netip.Addr, ttl time.Duration) []byte {
	h := dnsmessage.ResourceHeader{
		Name:  q.question.Name,
		Class: dnsmessage.ClassINET,
		TTL:   uint32(ttl / time.Second),
	}
	asked := func(t dnsmessage.Type) bool { return q.question.Type == t || q.question.Type == typeANY }
	return q.reply(dnsmessage.RCodeSuccess, true, func(b *dnsmessage.Builder) error {
		if v4 = v4.Unmap(); v4.Is4() && asked(dnsmessage.TypeA) {
			if err := b.AResource(h, dnsmessage.AResource{A: v4.As4()}); err != nil {
				return err
			}
		}
		if v6.Is6() && !v6.Is4In6() && asked(dnsmessage.TypeAAAA) {
			return b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: v6.As16()})
		}
		return nil
	})
}

// isAnswerTo tells whether a message from an upstream, sent the query under the
// given id, is its answer and not somebody else's guess.
func (q *query) isAnswerTo(msg []byte, id uint16) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	asked, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		// A server that could not read the query does not repeat it.
		return h.RCode != dnsmessage.RCodeSuccess
	}
	return err == nil && asked.Type == q.question.Type && asked.Class == q.question.Class &&
		lower(asked.Name.String()) == lower(q.question.Name.String())
}

// fit returns msg, an upstream's answer, or its head with TC set where it is
// larger than the client takes.
func (q *query) fit(msg []byte) (fitting []byte, truncated bool) {
	if len(msg) <= q.limit {
		return msg, false
	}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return q.failure(dnsmessage.RCodeServerFailure), false
	}
	short := q.failure(h.RCode)
	if len(short) >= headerSize {
		short[2] |= 1 << 1 // TC
	}
	return short, true
}
