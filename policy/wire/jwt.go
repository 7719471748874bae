package wire

import "github.com/weir-mesh/weir/policy"

func fromIssuers(issuers []policy.JWTIssuer) []*JWTIssuer {
	out := make([]*JWTIssuer, len(issuers))
	for i, is := range issuers {
		out[i] = &JWTIssuer{
			Issuer: is.Issuer, Audiences: is.Audiences, Algorithms: is.Algorithms, AllowNoExpiry: is.AllowNoExpiry,
			JwksUrl: is.JWKSURL, JwksFile: is.JWKSFile, SecretFile: is.SecretFile, SecretEnv: is.SecretEnv, RefreshSeconds: is.Refresh,
		}
	}
	return out
}

func (in *Inbound) policyJWT() policy.JWTSettings {
	out := policy.JWTSettings{Leeway: policy.DefaultLeeway}
	if in.JwtLeewaySeconds != nil {
		out.Leeway = in.GetJwtLeewaySeconds()
	}
	for _, m := range in.GetJwtIssuers() {
		out.Issuers = append(out.Issuers, policy.JWTIssuer{
			Issuer: m.GetIssuer(), Audiences: m.GetAudiences(), Algorithms: m.GetAlgorithms(), AllowNoExpiry: m.GetAllowNoExpiry(),
			JWKSURL: m.GetJwksUrl(), JWKSFile: m.GetJwksFile(), SecretFile: m.GetSecretFile(), SecretEnv: m.GetSecretEnv(), Refresh: m.GetRefreshSeconds(),
		})
	}
	return out
}
