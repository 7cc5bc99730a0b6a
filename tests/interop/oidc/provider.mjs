// An identity provider of another maker, for tests: `node provider.mjs PORT CALLBACK`. Whoever logs in as a name of USERS is that one.
import Provider from 'oidc-provider';

const [port, callback] = process.argv.slice(2);
const USERS = {
  ana: { sub: 'ana', preferred_username: 'ana', groups: ['staff', 'node-admins'] },
  rae: { sub: 'rae', preferred_username: 'rae', groups: ['node-readers'] },
  vic: { sub: 'vic', preferred_username: 'vic', groups: ['node-viewers', 'node-readers-not'] },
  nobody: { sub: 'nobody', preferred_username: 'nobody', groups: ['staff'] },
  local: { sub: 'local', preferred_username: 'a-admin', groups: ['node-admins'] },
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'node', client_secret: 'a secret of the node', redirect_uris: [callback],
    grant_types: ['authorization_code'], response_types: ['code'],
    post_logout_redirect_uris: [callback.replace('/oidc/callback', '/login')],
  }],
  pkce: { required: () => true },
  claims: { openid: ['sub'], profile: ['preferred_username', 'groups'], email: [] },
  scopes: ['openid', 'profile', 'email'],
  findAccount: (_, id) => USERS[id] && { accountId: id, claims: () => USERS[id] },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  cookies: { keys: ['only for tests'] },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
